//! NVIDIA Dynamo's package, and the services of its older dialect.

use tandem_launch::slurm::Slurm;

use super::{Check, State, check, program};
use crate::cli_doctor::Purpose;

pub(super) fn dynamo(client: &Slurm) -> Vec<Check> {
    let p = Purpose::Dynamo;
    let python = std::env::var("TANDEM_DYNAMO_PYTHON").ok().filter(|v| !v.is_empty()).unwrap_or_else(|| "python3".to_owned());
    let version = "from importlib.metadata import version; print(version('ai-dynamo'))";
    // The client calls any program with a deadline.
    let installed = client.call(&python, &["-c", version]).ok();
    let package = match installed {
        Some(text) => check(p, "ai-dynamo", State::Ok, format!("{} in {python}", text.trim()), ""),
        None => check(
            p,
            "ai-dynamo",
            State::Missing,
            format!("{python} has no such package"),
            "python3 -m venv DIR && DIR/bin/pip install ai-dynamo, then export TANDEM_DYNAMO_PYTHON=DIR/bin/python",
        ),
    };
    vec![
        package,
        program(p, "etcd", State::Note, "only the dialect of Dynamo 0.6, or several nodes, need it", "Debian: etcd-server"),
        program(p, "nats-server", State::Note, "only the dialect of Dynamo 0.6, or several nodes, need it", "Debian: nats-server"),
    ]
}
