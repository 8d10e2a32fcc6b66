"""The paper's claims: ``rules`` says what each compares, ``judge`` what comes of it."""
