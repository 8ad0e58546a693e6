"""One file a kind of layer: its rule, and the autograd function that stands in for torch's."""
