//! Prints docs/reference/knobs.md, for `cargo xtask codegen`.

#[expect(clippy::print_stdout, reason = "its output is the document")]
fn main() {
    print!("{}", tandem_recipe::knob_reference_markdown());
}
