"""What runs will take before they start: ``footprint`` and ``pace`` of one, ``forecast`` of a study."""
