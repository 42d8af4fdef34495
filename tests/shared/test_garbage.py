"""The pause of the search for cycles: it ends however its block ends, and one that was on before stays off."""

from __future__ import annotations

import gc

import pytest

from beit3_bench.garbage import collection_paused


def test_a_pause_ends_with_its_block_and_after_an_error():
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"), collection_paused():
        raise ValueError("inside")
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off():
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
