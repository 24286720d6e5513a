"""From a description to an `nn.Module`: the plan of its blobs, the layers it is built of, the net that runs."""
