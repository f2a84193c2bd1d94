//! Carries out what the core decides: one request at a time, each with its own time limit.

use super::core::{Action, Event, Held, LeaseCore, LeaseView, Renewal, Timing};
use crate::{
    clock::{Boottime, Clock},
    metrics::Metrics,
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Longest wait for one answer. Shorter than `D_fence`, so that a lost answer leaves time for a second attempt.
pub const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Taken; what the Lease says now.
    Accepted(LeaseView),
    /// Refused: somebody changed the Lease.
    Conflict,
    /// Not known.
    NoAnswer(String),
}

/// The host's Lease in the API.
pub trait LeaseApi: Send + Sync + 'static {
    /// Reads it, with quorum.
    fn read(&self) -> BoxFuture<'_, Result<Option<LeaseView>, String>>;
    /// Compares and swaps it.
    fn write(&self, renewal: Renewal) -> BoxFuture<'_, Written>;
}

/// What everybody on this host may know of its Lease.
#[derive(Clone, Debug)]
pub struct Holding {
    held: watch::Receiver<Option<Held>>,
    epoch: watch::Receiver<Option<i64>>,
}

impl Holding {
    /// What is held, with the deadline of the last renewal.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        *self.held.borrow()
    }

    /// The epoch that may be acted upon now.
    #[must_use]
    pub fn valid_epoch(&self, now: Boottime) -> Option<i64> {
        self.held()
            .filter(|held| held.is_valid(now))
            .map(|held| held.epoch)
    }

    /// Changes when an epoch is held or lost, not with each renewal.
    #[must_use]
    pub fn epoch(&self) -> watch::Receiver<Option<i64>> {
        self.epoch.clone()
    }
}

/// The writing side of [`Holding`].
#[derive(Debug)]
pub struct HoldingSender {
    held: watch::Sender<Option<Held>>,
    epoch: watch::Sender<Option<i64>>,
}

impl HoldingSender {
    /// Nothing is held yet.
    #[must_use]
    pub fn new() -> (Self, Holding) {
        let (held, held_receiver) = watch::channel(None);
        let (epoch, epoch_receiver) = watch::channel(None);
        (
            Self { held, epoch },
            Holding {
                held: held_receiver,
                epoch: epoch_receiver,
            },
        )
    }

    /// Publishes what is held.
    pub fn set(&self, held: Option<Held>) {
        self.held.send_replace(held);
        let epoch = held.map(|held| held.epoch);
        self.epoch.send_if_modified(|current| {
            let changed = *current != epoch;
            *current = epoch;
            changed
        });
    }
}

/// What the renewal of the Lease is given.
pub struct Renewer<A> {
    /// The Lease.
    pub api: A,
    /// The clock of the deadlines.
    pub clock: Arc<dyn Clock>,
    /// How often and how long.
    pub timing: Timing,
    /// This boot's session.
    pub session: String,
    /// A random text of this process.
    pub nonce_prefix: String,
    /// Where to publish what is held.
    pub holding: HoldingSender,
    /// Becomes true when leftovers are known.
    pub leftovers_known: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl<A: LeaseApi> Renewer<A> {
    /// Renews for ever.
    pub async fn run(self) {
        let Self {
            api,
            clock,
            timing,
            session,
            nonce_prefix,
            holding,
            mut leftovers_known,
            metrics,
        } = self;
        let mut core = LeaseCore::new(timing, &session, &nonce_prefix);
        let mut request: Option<BoxFuture<'_, Event>> = None;
        let mut told = false;
        let mut event = Event::Tick;
        loop {
            let mut wake = None;
            for action in core.step(clock.boottime(), event) {
                match action {
                    Action::Read => request = Some(Box::pin(read(&api))),
                    Action::Write(renewal) => {
                        request = Some(Box::pin(write(&api, renewal, &metrics)));
                    }
                    Action::Hold(held) => {
                        if holding.held.borrow().map(|old| old.epoch) != Some(held.epoch) {
                            info!(epoch = held.epoch, "the host's lease is held");
                        }
                        holding.set(Some(held));
                    }
                    Action::LetGo(why) => {
                        warn!(?why, "the host's lease is no longer held");
                        holding.set(None);
                    }
                    Action::WakeAt(time) => wake = Some(time),
                }
            }
            let pause = wake.map_or(Duration::MAX, |time| time.since(clock.boottime()));
            event = tokio::select! {
                event = async {
                    match request.as_mut() {
                        Some(request) => request.await,
                        None => std::future::pending().await,
                    }
                } => {
                    request = None;
                    event
                }
                changed = leftovers_known.wait_for(|known| *known), if !told => {
                    told = true;
                    match changed {
                        Ok(_) => Event::LeftoversKnown,
                        // Nobody will ever know them: never join.
                        Err(_) => Event::Tick,
                    }
                }
                () = tokio::time::sleep(pause), if wake.is_some() => Event::Tick,
            };
        }
    }
}

async fn read<A: LeaseApi>(api: &A) -> Event {
    match tokio::time::timeout(REQUEST_TIMEOUT, api.read()).await {
        Ok(Ok(view)) => Event::Read(view),
        Ok(Err(error)) => {
            debug!(%error, "the lease could not be read");
            Event::ReadFailed
        }
        Err(_) => Event::ReadFailed,
    }
}

async fn write<A: LeaseApi>(api: &A, renewal: Renewal, metrics: &Metrics) -> Event {
    match tokio::time::timeout(REQUEST_TIMEOUT, api.write(renewal)).await {
        Ok(Written::Accepted(view)) => {
            metrics.lease_renewals.add(1);
            Event::Accepted(view)
        }
        Ok(Written::Conflict) => Event::Conflict,
        Ok(Written::NoAnswer(error)) => {
            metrics.lease_failures.add(1);
            warn!(%error, "the lease could not be renewed");
            Event::NoAnswer
        }
        Err(_) => {
            metrics.lease_failures.add(1);
            warn!(limit = ?REQUEST_TIMEOUT, "the lease could not be renewed: no answer in time");
            Event::NoAnswer
        }
    }
}
