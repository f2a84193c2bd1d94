//! Pretended guests, for tests of scale: Running at once, Stopped at once, nothing on the host.

use super::{Backend, GuestKey, KnownUids, Leftover, Monitor, StartOrder, Teller, Told};
use crate::{
    clock::{Clock, SystemClock},
    instance::{
        actor::dhcp_answers,
        core::{End, Failure, Found, Guest, Pause, Started},
        status::POWER_BUTTON,
    },
};
use futures::{FutureExt, future::BoxFuture};
use paddock_crds::{
    host::Accelerator,
    virtual_machine_instance::{InstancePhase, Power, VirtualMachineInstanceStatus},
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// The pretending backend.
#[derive(Debug, Default)]
pub struct Hollow {
    guests: Mutex<HashMap<String, Teller>>,
}

impl Hollow {
    fn insert(&self, uid: &str, teller: Teller) {
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned(), teller);
    }

    fn teller(&self, uid: &str) -> Option<Teller> {
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned()
    }

    fn remove(&self, uid: &str) -> Option<Teller> {
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid)
    }
}

impl Backend for Hollow {
    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Leftover>, String>> {
        async { Ok(Vec::new()) }.boxed()
    }

    /// A pretended guest outlives the agent: it runs if the API says that it did.
    fn examine<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Found, Option<Monitor>), String>> {
        let guest = match status.phase {
            InstancePhase::Running => Guest::Running,
            InstancePhase::Paused => Guest::Paused(Pause::Requested),
            _ => return async { Ok((Found::Nothing, None)) }.boxed(),
        };
        self.insert(&key.uid, teller);
        let started = Started {
            generation: status.started_generation.unwrap_or_default(),
            config_revision: status.started_config_revision.clone().unwrap_or_default(),
            restart_token: status.restart_token.clone(),
            at: status.started_at.clone().unwrap_or_default(),
            process_id: status.process_id,
            accelerator: status.accelerator,
            dhcp: String::new(),
        };
        async move { Ok((Found::Adopted { started, guest }, None)) }.boxed()
    }

    fn prepare<'a>(&'a self, _: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn spawn<'a>(
        &'a self,
        order: &'a StartOrder,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Started, Monitor), Failure>> {
        self.insert(&order.key.uid, teller.clone());
        let spec = &order.instance.spec;
        let started = Started {
            generation: order.instance.metadata.generation.unwrap_or_default(),
            config_revision: spec.config_revision.clone(),
            restart_token: spec.restart_token.clone(),
            at: SystemClock.wall().to_string(),
            process_id: None,
            accelerator: Some(Accelerator::Emulation),
            dhcp: dhcp_answers(&order.instance),
        };
        let monitor = async move { teller.tell(Told::GuestIs(Guest::Running)).await }.boxed();
        async move { Ok((started, monitor)) }.boxed()
    }

    fn set_power<'a>(
        &'a self,
        key: &'a GuestKey,
        power: Power,
    ) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let guest = match power {
                Power::Running => Guest::Running,
                Power::Paused => Guest::Paused(Pause::Requested),
                Power::Stopped => return self.stop(key, 0).await,
            };
            match self.teller(&key.uid) {
                Some(teller) => {
                    teller.tell(Told::GuestIs(guest)).await;
                    Ok(())
                }
                None => Err(format!("{key}: there is no such guest")),
            }
        }
        .boxed()
    }

    fn stop<'a>(&'a self, key: &'a GuestKey, _: u32) -> BoxFuture<'a, Result<(), String>> {
        async move {
            match self.remove(&key.uid) {
                Some(teller) => {
                    teller.tell(Told::Exited(End::Stopped(POWER_BUTTON))).await;
                    Ok(())
                }
                None => Err(format!("{key}: there is no such guest")),
            }
        }
        .boxed()
    }

    fn clear<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.remove(uid);
        async { Ok(()) }.boxed()
    }

    fn clean<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        async { Ok(()) }.boxed()
    }

    fn serve_dhcp<'a>(&'a self, _: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed()
    }

    fn sweep<'a>(&'a self, _: &'a KnownUids) -> BoxFuture<'a, Result<(), String>> {
        async { Ok(()) }.boxed()
    }
}
