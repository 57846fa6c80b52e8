from __future__ import annotations

from dlas.core.errors import (
    CheckFailedError,
    DlasError,
    MissingDependencyError,
    OptionError,
    UnknownNameError,
)


def test_message_and_hint_make_one_line():
    assert str(DlasError("it is 3", "make it 4")) == "it is 3 (make it 4)"
    assert str(DlasError("it is 3")) == "it is 3"


def test_exit_codes_tell_user_errors_from_failed_checks():
    assert (DlasError("").exit_code, CheckFailedError("").exit_code) == (2, 1)


def test_texts_name_the_value_and_what_is_accepted():
    error = OptionError("sparsity", 1.5, "a number below 1")
    assert str(error) == "sparsity = 1.5 is not accepted: expected a number below 1"
    assert "pip install 'dlas[tvm]'" in str(MissingDependencyError("tvm", "tvm", "back end tvm"))


def test_unknown_name_offers_the_closest_or_lists_some():
    assert "did you mean 'magnitude'?" in str(UnknownNameError("method", "magnitud", ["magnitude", "int8"]))
    assert "known: a1, b2" in str(UnknownNameError("method", "zzzz", ["b2", "a1"]))
    assert "none is known" in str(UnknownNameError("method", "x", []))
    many = str(UnknownNameError("method", "zzzz", [f"m{i:02}" for i in range(20)]))
    assert many.endswith("m11, …")
