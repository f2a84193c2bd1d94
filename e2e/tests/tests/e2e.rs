//! The test program: `e2e [--list] [part of a name]…`.

use std::process::ExitCode;

fn main() -> ExitCode {
    paddock_e2e::runner::main(
        std::env::args().skip(1).collect(),
        &paddock_e2e::scenarios::all(),
    )
}
