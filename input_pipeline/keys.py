"""Keyed hashes that stand for patients, studies and images, so that no identifier of the source leaves the machine."""

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from input_pipeline.errors import UserError

SALT_NAME = ".msfl_salt"
_SALT_BYTES = 32


@dataclass(frozen=True)
class Keyring:
    """Turns identifiers into keys; builds that share a salt give the same patient the same key."""

    salt: bytes = field(repr=False)

    def key(self, kind: Literal["patient", "study", "image", "part", "pixels"], identifier: str) -> str:
        """32 hex digits: BLAKE2b of 128 bits, keyed by the salt, with `kind` as personalisation (RFC 7693)."""
        return hashlib.blake2b(_bytes(identifier), digest_size=16, key=self.salt, person=kind.encode()).hexdigest()

    def member(self, identifier: str) -> str:
        """64 hex digits that stand for one member of a set in its hash: BLAKE2b as for `key`, of 256 bits."""
        return hashlib.blake2b(_bytes(identifier), digest_size=32, key=self.salt, person=b"member").hexdigest()

    @property
    def check(self) -> str:
        """16 hex digits that tell two salts apart without revealing them."""
        return hashlib.blake2b(b"", digest_size=8, key=self.salt, person=b"check").hexdigest()


def open_keyring(root: Path) -> Keyring:
    """The keyring of a data root: its `.msfl_salt` (mode 0600), made at random on first use.

    Raises:
      UserError: the file is not 64 hex digits, or cannot be made or read.
    """
    path = root / SALT_NAME
    try:
        if not path.exists():
            _create_salt(path)
        digits = path.read_text().strip()
        salt = bytes.fromhex(digits)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a data root that can be written and read") from error
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise UserError(f"{path}: expected 64 hex digits; restore it, or delete it and every build beside it")
    return Keyring(salt)


def _bytes(identifier: str) -> bytes:
    """UTF-8, and for the surrogates of a file's name that is none, the bytes that would be theirs: no two identifiers have the same."""
    return identifier.encode(errors="surrogatepass")


def _create_salt(path: Path) -> None:
    """Two commands may start at once: the first to finish wins, and neither ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(_SALT_BYTES) + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(draft, path)
        return
    draft.unlink()
