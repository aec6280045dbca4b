"""Which localization methods can be trusted: INJ, DEL and a planted look-up where the answer is known, and DEL on a real model."""
