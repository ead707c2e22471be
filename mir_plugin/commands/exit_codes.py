"""What ``mir`` exits with where 0, 1 (nothing could be done) and 2 (wrong usage) say too little."""

SOME_FAILED = 5
INTERRUPTED = 130
