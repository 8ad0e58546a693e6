"""Task vectors: masked, merged, laid on a target, shuffled as a control, written."""
