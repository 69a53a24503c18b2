"""Image metrics of experiments; one metric per file, each a pure function over arrays."""
