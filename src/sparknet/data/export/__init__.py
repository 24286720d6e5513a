"""Out again: databases that Caffe reads, and ImageNet as shuffled tar chunks."""
