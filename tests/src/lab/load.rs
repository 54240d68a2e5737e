//! Checked load over HTTP: open and closed loops, every answer compared with the whole model's.
