//! Empty: the programs are examples of this package.
