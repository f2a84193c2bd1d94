//! The drivers with a pretended API: actors on the hollow backend, and jobs with a pretended worker.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod instances;
mod tasks;

use paddock_agent::{
    clock::Boottime,
    lease::{Held, Holding, renew::HoldingSender},
};
use std::time::Duration;

const EPOCH: i64 = 4;

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn held() -> (HoldingSender, Holding) {
    let (sender, holding) = HoldingSender::new();
    sender.set(Some(Held {
        epoch: EPOCH,
        until: Boottime::from_millis(u64::MAX),
    }));
    (sender, holding)
}
