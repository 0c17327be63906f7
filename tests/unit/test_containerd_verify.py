"""Which image of containerd the beginning of a digest means."""

import pytest

from dmthin.containerd.verify import _complete
from dmthin.errors import InvalidValue, NotFound

FIRST, SECOND = f"sha256:8c{'1' * 62}", f"sha256:8c{'2' * 62}"


def test_the_beginning_of_a_digest_means_one_image() -> None:
    known = {FIRST, SECOND}
    for name in ("8c1", "sha256:8c1", FIRST):
        assert _complete(name, known) == FIRST
    with pytest.raises(NotFound, match="no image whose digest begins with 9: run: ctr images ls"):
        _complete("9", known)
    with pytest.raises(InvalidValue, match="2 images whose digests begin with sha256:8c: write more of the digest"):
        _complete("sha256:8c", known)
