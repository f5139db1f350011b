"""Names that are allowed, and those that would be mistaken for something else."""

import pytest

from rm_server.errors import InvalidRequest
from rm_server.registry.names import check_digest, check_label, check_model_name, is_digest


@pytest.mark.parametrize("name", ["helpfulness", "team/helpful.v2", "A-b_c.d", "7b", "x" * 200])
def test_a_model_may_be_called(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a@b", "a b", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "ü", "a\n", "x" * 201]
)
def test_a_model_may_not_be_called(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a model"):
        check_model_name(name)


@pytest.mark.parametrize("label", ["stable", "canary", "v2", "2b", "-", "1.0"])
def test_a_label_may_be(label: str) -> None:
    assert check_label(label) == label


@pytest.mark.parametrize("label", ["", "2", "0017", "a/b", "a@b", "a b", "stable\n", "x" * 201])
def test_a_label_may_not_be(label: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a label"):
        check_label(label)


@pytest.mark.parametrize("text", ["", "ab", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "../" + "a" * 61])
def test_what_is_no_digest_never_becomes_a_path(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(InvalidRequest, match="no digest"):
        check_digest(text)


def test_a_digest_is_64_hexadecimal_digits() -> None:
    assert is_digest("0123456789abcdef" * 4)
