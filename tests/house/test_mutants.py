"""The planted bugs of tests/mutants.py still fit the source; that each is noticed is `make mutants`."""

from mutants import MUTANTS, Mutant, check_mutant


def test_every_mutant_is_found_where_it_should_be():
    assert [complaint for mutant in MUTANTS if (complaint := check_mutant(mutant))] == []


def test_no_two_mutants_have_one_name():
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


def test_a_mutant_that_no_longer_fits_is_told():
    assert "found 0 times in zo/errors.py" in check_mutant(Mutant("", "errors.py", "no such text", "", ()))
    assert "not Python" in check_mutant(Mutant("", "errors.py", "FEW = 20", "FEW = (", ()))
