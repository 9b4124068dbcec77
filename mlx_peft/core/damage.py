"""What reading a damaged archive raises, beyond the errors that its libraries document."""

from __future__ import annotations

import tokenize
import zipfile
import zlib

NPZ = (
    *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)
"""A damaged ``.npz`` raises these: the archive's errors, its compression's, and those of NumPy, which reads an array's
header as Python."""
