"""Part of arrow 1: from what lies on disks and servers to datasets and decoded chunks."""
