"""A pydicom decoder for lossless and 12-bit JPEG by imagecodecs (BSD), that is by libjpeg-turbo 3.

pydicom's own choices for these are a GPL library, and GDCM, which aborts the process on some damaged streams.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

NAME = "imagecodecs"
SYNTAXES = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)

# pydicom's protocol for a plugin module: these two names and `_decode_frame`.
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Say whether this module decodes a transfer syntax here."""
    return syntax in SYNTAXES and find_spec("imagecodecs") is not None


def register() -> None:
    """Make the decoder known to pydicom under `NAME`; once is enough, more does no harm."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if NAME not in (*decoder._available, *decoder._unavailable):
            decoder.add_plugin(NAME, (__name__, "_decode_frame"))


def _decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Return a frame's samples, colour by pixel, in the colour space of the stream."""
    import imagecodecs

    # Input and output named alike: no conversion here, pydicom does it as the header says.
    space = "RGB" if runner.samples_per_pixel == 3 else "GRAYSCALE"
    frame = np.asarray(imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space))
    if runner.samples_per_pixel == 3:
        runner.set_option("planar_configuration", 0)
    # pydicom carries the sign bit of signed samples upwards itself, the stream does not know of it.
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return frame.tobytes()
