//! `lightd completions SHELL`.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

pub(crate) fn run(shell: Shell, out: &mut dyn io::Write) -> io::Result<()> {
    // The generator panics where it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lightd", &mut script);
    out.write_all(&script)
}
