//! `tandem serve`: the frontend of a plan.

use std::io::Write;

use anyhow::Context;
use serde_json::json;
use tandem_plan::Address;
use tokio::net::TcpListener;

use super::recipe::read_plan;
use crate::cli::ServeArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::until_stopped;

pub(crate) fn serve(args: ServeArgs) -> Result<(), Failure> {
    let plan = read_plan(&args.plan)?;
    let tokenizer = super::tokenizer::of_plan(&plan)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::Bug)?;
    runtime.block_on(until_stopped(args.stop_with_stdin, async |shutdown| {
        let http = bind(args.http.as_deref(), &plan.frontend.http).await?;
        let control = bind(args.control.as_deref(), &plan.frontend.control).await?;
        let addresses = (http.local_addr().or_exit(Exit::Bug)?, control.local_addr().or_exit(Exit::Bug)?);
        tracing::info!(http = %addresses.0, control = %addresses.1, model = %plan.model.served_name, "listening");
        if args.announce {
            let line = json!({"http": addresses.0.to_string(), "control": addresses.1.to_string()});
            // The starter may have gone already; then standard input tells.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        let options = tandem_frontend::Options { api_key: api_key(), tokenizer };
        tandem_frontend::serve(plan, http, control, options, shutdown).await.or_exit(Exit::Bug)
    }))
}

/// The key that clients must send, from `TANDEM_API_KEY`; never an argument, where every user of the machine could read it.
pub(crate) fn api_key() -> Option<String> {
    std::env::var("TANDEM_API_KEY").ok().filter(|key| !key.is_empty())
}

async fn bind(flag: Option<&str>, planned: &Address) -> Result<TcpListener, Failure> {
    let address = flag.map_or_else(|| planned.to_string(), str::to_owned);
    let bound = TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"));
    bound.or_exit(Exit::NotReady).map_err(|f| f.with_hint("another process may use the port: choose another, or 0 for any free one"))
}
