"""From the prepared store to a batch: which row when, a pure function of the seed; decoding, cutting, mirroring."""
