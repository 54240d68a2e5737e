//! The `mesh` binary: everything is in the library.

fn main() {}
