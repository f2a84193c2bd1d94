//! Carries out what the core of one instance decides. It never waits for an effect: each runs in a task of its own and
//! mails its answer, so a slow disk delays no order to stop.

use super::core::{Action, Event, Failure, InstanceCore, Now, Run, Wish};
use crate::{
    backend::{Backend, GuestKey, StartOrder, Teller, Told},
    clock::Clock,
    lease::Holding,
    metrics::Metrics,
};
use futures::future::BoxFuture;
use kube::ResourceExt;
use paddock_crds::{
    VirtualMachineInstance, virtual_machine_instance::VirtualMachineInstanceStatus as Status,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

/// Letters that wait for one actor. Its senders are its own effects and the supervisor, so more is a standstill.
const MAILBOX: usize = 32;
/// Longest wait for one effect before it counts as failed.
const EXAMINE_LIMIT: Duration = Duration::from_secs(30);
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
const SPAWN_LIMIT: Duration = Duration::from_secs(30);
const CALL_LIMIT: Duration = Duration::from_secs(15);
const CLEAN_LIMIT: Duration = Duration::from_secs(60);
/// First and longest wait from a failed status write to the next.
const WRITE_RETRY: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(5);

/// Why a status was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusWriteError {
    /// There is no such instance any more.
    Gone,
    /// Another reason.
    Failed(String),
}

/// Instances in the API.
pub trait InstanceApi: Send + Sync + 'static {
    /// Reads an instance with quorum; `None` when there is none of this uid that belongs to this host.
    fn read<'a>(
        &'a self,
        key: &'a GuestKey,
    ) -> BoxFuture<'a, Result<Option<VirtualMachineInstance>, String>>;
    /// Writes a status.
    fn write_status<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a Status,
    ) -> BoxFuture<'a, Result<(), StatusWriteError>>;
}

/// What every actor uses.
pub struct Surroundings<B> {
    /// What runs guests.
    pub backend: Arc<B>,
    /// The API.
    pub api: Arc<dyn InstanceApi>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The host's lease.
    pub holding: Holding,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bounds the starts at work at once.
    pub starts: Arc<Semaphore>,
    /// Bounds the calls of the API at once.
    pub calls: Arc<Semaphore>,
}

/// A letter to an actor.
#[derive(Clone, Debug)]
pub enum Letter {
    /// A watch shows the instance.
    Seen(Arc<VirtualMachineInstance>),
    /// A watch no longer shows it.
    Vanished,
}

#[derive(Debug)]
enum Mail {
    Read(Result<Option<Arc<VirtualMachineInstance>>, String>),
    Event(Event),
    Written(Box<Status>, Result<(), StatusWriteError>),
}

/// The way to an actor.
#[derive(Clone, Debug)]
pub struct Address(mpsc::Sender<Letter>);

impl Address {
    /// Sends; gives the letter back when the actor has ended.
    ///
    /// # Errors
    /// The letter, when nobody reads it any more.
    pub async fn send(&self, letter: Letter) -> Result<(), Letter> {
        self.0.send(letter).await.map_err(|error| error.0)
    }

    /// Whether the actor has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// What the spec of an instance wants.
#[must_use]
pub fn wish(instance: &VirtualMachineInstance) -> Wish {
    let spec = &instance.spec;
    Wish {
        generation: instance.metadata.generation.unwrap_or_default(),
        host_epoch: spec.host_epoch,
        power: spec.power,
        restart_token: spec.restart_token.clone(),
        config_revision: spec.config_revision.clone(),
        stop_deadline_seconds: u32::try_from(spec.config.stop_deadline_seconds).unwrap_or_default(),
        dhcp: dhcp_answers(instance),
        deleting: instance.metadata.deletion_timestamp.is_some(),
    }
}

/// What the DHCP servers of an instance are to answer, as a text to compare.
#[must_use]
pub fn dhcp_answers(instance: &VirtualMachineInstance) -> String {
    let adapters = instance.spec.config.network_adapters.iter();
    let answers: Vec<_> = adapters
        .filter_map(|a| Some((&a.name, a.network.as_ref()?.dhcp.as_ref()?)))
        .collect();
    // Texts and numbers always have a JSON form.
    serde_json::to_string(&answers).unwrap_or_default()
}

/// One instance's actor.
pub struct Actor<B> {
    key: GuestKey,
    world: Arc<Surroundings<B>>,
    core: InstanceCore,
    instance: Option<Arc<VirtualMachineInstance>>,
    letters: mpsc::Receiver<Letter>,
    mail_in: mpsc::Receiver<Mail>,
    mail_out: mpsc::Sender<Mail>,
    told_in: mpsc::Receiver<(Run, Told)>,
    told_out: mpsc::Sender<(Run, Told)>,
    unwritten: Option<Box<Status>>,
    writing: bool,
    write_retry: Duration,
    counted_up: bool,
}

impl<B: Backend> Actor<B> {
    /// An actor for an instance, and the way to it. `status` is what the API says of it.
    #[must_use]
    pub fn start(
        key: GuestKey,
        status: Option<Status>,
        world: Arc<Surroundings<B>>,
    ) -> (Address, BoxFuture<'static, ()>) {
        let (letters_out, letters) = mpsc::channel(MAILBOX);
        let (mail_out, mail_in) = mpsc::channel(MAILBOX);
        let (told_out, told_in) = mpsc::channel(MAILBOX);
        let (core, actions) = InstanceCore::new(status.as_ref());
        let actor = Self {
            key,
            world,
            core,
            instance: None,
            letters,
            mail_in,
            mail_out,
            told_in,
            told_out,
            unwritten: None,
            writing: false,
            write_retry: WRITE_RETRY,
            counted_up: false,
        };
        let status = status.unwrap_or_default();
        (
            Address(letters_out),
            Box::pin(async move { actor.run(actions, status).await }),
        )
    }

    async fn run(mut self, first: Vec<Action>, status: Status) {
        let mut epoch = self.world.holding.epoch();
        let mut wake = None;
        for action in first {
            self.act(action, &status, &mut wake);
        }
        loop {
            let pause = wake.map_or(Duration::MAX, |time: crate::clock::Boottime| {
                time.since(self.world.clock.boottime())
            });
            let event = tokio::select! {
                biased;
                Some(mail) = self.mail_in.recv() => self.open(mail),
                Some((run, told)) = self.told_in.recv() => Some(match told {
                    Told::GuestIs(guest) => Event::GuestIs(run, guest),
                    Told::Measured(uses) => Event::Measured(run, uses),
                    Told::MeasuredLast(uses) => Event::MeasuredLast(run, uses),
                    Told::Exited(end) => Event::Exited(run, end),
                }),
                letter = self.letters.recv() => match letter {
                    Some(Letter::Seen(instance)) => {
                        Some(Event::Wished(self.take_instance(instance)))
                    }
                    Some(Letter::Vanished) => Some(Event::Vanished),
                    // The agent ends; guests go on.
                    None => return,
                },
                Ok(()) = epoch.changed() => Some(Event::Tick),
                () = tokio::time::sleep(pause), if wake.is_some() => Some(Event::Tick),
            };
            let Some(event) = event else { continue };
            debug!(instance = %self.key, ?event, "event");
            self.count(&event);
            let now = Now {
                boot: self.world.clock.boottime(),
                wall: self.world.clock.wall(),
                held: self.world.holding.held(),
            };
            let actions = self.core.step(now, event);
            wake = None;
            let mut ended = false;
            for action in actions {
                ended |= action == Action::End;
                self.act(action, &status, &mut wake);
            }
            self.count_up();
            if ended {
                info!(instance = %self.key, "the instance has ended");
                return;
            }
        }
    }

    fn take_instance(&mut self, instance: Arc<VirtualMachineInstance>) -> Wish {
        let wish = wish(&instance);
        let older = self
            .instance
            .as_ref()
            .is_some_and(|known| known.metadata.generation > instance.metadata.generation);
        if !older {
            self.instance = Some(instance);
        }
        wish
    }

    fn open(&mut self, mail: Mail) -> Option<Event> {
        match mail {
            Mail::Event(event) => Some(event),
            Mail::Read(Ok(Some(instance))) => {
                Some(Event::Confirmed(Some(self.take_instance(instance))))
            }
            Mail::Read(Ok(None)) => Some(Event::Confirmed(None)),
            Mail::Read(Err(error)) => {
                warn!(instance = %self.key, %error, "the instance could not be read");
                Some(Event::ConfirmFailed)
            }
            Mail::Written(status, result) => {
                self.writing = false;
                let event = match result {
                    Ok(()) => {
                        self.world.metrics.status_writes.add(1);
                        self.write_retry = WRITE_RETRY;
                        None
                    }
                    Err(error) => {
                        self.world.metrics.status_write_failures.add(1);
                        self.write_retry = (self.write_retry * 2).min(WRITE_RETRY_MAX);
                        self.unwritten.get_or_insert(status);
                        match error {
                            // It ends this actor, if a read says so too.
                            StatusWriteError::Gone => Some(Event::Vanished),
                            StatusWriteError::Failed(error) => {
                                warn!(instance = %self.key, %error, "the status could not be written");
                                None
                            }
                        }
                    }
                };
                self.write();
                event
            }
        }
    }

    fn act(
        &mut self,
        action: Action,
        first_status: &Status,
        wake: &mut Option<crate::clock::Boottime>,
    ) {
        let world = self.world.clone();
        let key = self.key.clone();
        match action {
            Action::Examine(run) => {
                let teller = Teller::new(run, self.told_out.clone());
                let status = first_status.clone();
                let mails = self.mail_out.clone();
                tokio::spawn(async move {
                    let examination = world.backend.examine(&key, &status, teller);
                    let (event, monitor) = match limited(EXAMINE_LIMIT, examination).await {
                        Ok((found, monitor)) => {
                            if monitor.is_some() {
                                world.metrics.adoptions.add(1);
                                info!(instance = %key, ?found, "took a running machine over");
                            }
                            (Event::Examined(found), monitor)
                        }
                        Err(error) => (Event::ExamineFailed(error), None),
                    };
                    let _ = mails.send(Mail::Event(event)).await;
                    if let Some(monitor) = monitor {
                        monitor.await;
                    }
                });
            }
            Action::Confirm => self.effect(async move {
                let _permit = world.calls.acquire().await;
                let read = limited(CALL_LIMIT, world.api.read(&key)).await;
                Mail::Read(read.map(|instance| instance.map(Arc::new)))
            }),
            Action::Prepare => {
                let order = self.order();
                self.effect(async move {
                    let _permit = world.starts.acquire().await;
                    let result = match order {
                        Ok(order) => {
                            limited_start(PREPARE_LIMIT, world.backend.prepare(&order)).await
                        }
                        Err(failure) => Err(failure),
                    };
                    if let Err(failure) = &result {
                        world.metrics.start_failures.add(1);
                        warn!(instance = %key, reason = failure.reason, message = %failure.message, "not started");
                    }
                    Mail::Event(Event::Prepared(result))
                });
            }
            Action::Spawn(run) => {
                let teller = Teller::new(run, self.told_out.clone());
                let order = self.order();
                let mails = self.mail_out.clone();
                tokio::spawn(async move {
                    let spawned = {
                        let _permit = world.starts.acquire().await;
                        match &order {
                            Ok(order) => {
                                limited_start(SPAWN_LIMIT, world.backend.spawn(order, teller)).await
                            }
                            Err(failure) => Err(failure.clone()),
                        }
                    };
                    let (result, monitor) = match spawned {
                        Ok((started, monitor)) => {
                            world.metrics.starts.add(1);
                            info!(instance = %key, pid = started.process_id, "started");
                            (Ok(started), Some(monitor))
                        }
                        Err(failure) => {
                            world.metrics.start_failures.add(1);
                            warn!(instance = %key, reason = failure.reason, message = %failure.message, "not started");
                            (Err(failure), None)
                        }
                    };
                    let _ = mails.send(Mail::Event(Event::Spawned(result))).await;
                    if let Some(monitor) = monitor {
                        monitor.await;
                    }
                });
            }
            Action::SetPower(power) => {
                tokio::spawn(async move {
                    if let Err(error) =
                        limited(CALL_LIMIT, world.backend.set_power(&key, power)).await
                    {
                        warn!(instance = %key, ?power, %error, "power was not set");
                    }
                });
            }
            Action::ServeDhcp(run) => {
                let order = self.order();
                self.effect(async move {
                    let result = match &order {
                        Ok(order) => limited_start(CALL_LIMIT, world.backend.serve_dhcp(order))
                            .await
                            .map(|()| dhcp_answers(&order.instance)),
                        Err(failure) => Err(failure.clone()),
                    };
                    match &result {
                        Ok(_) => info!(instance = %key, "its DHCP servers answer anew"),
                        Err(failure) => {
                            warn!(instance = %key, message = %failure.message, "its DHCP servers were not told what to answer");
                        }
                    }
                    Mail::Event(Event::DhcpServed(run, result))
                });
            }
            Action::Stop(deadline) => {
                let mails = self.mail_out.clone();
                info!(instance = %key, deadline, "stopping");
                tokio::spawn(async move {
                    if let Err(error) =
                        limited(CALL_LIMIT, world.backend.stop(&key, deadline)).await
                    {
                        warn!(instance = %key, %error, "could not be asked to stop: killing it");
                        let _ = mails.send(Mail::Event(Event::StopFailed)).await;
                    }
                });
            }
            Action::Clear => self.effect(async move {
                Mail::Event(
                    match limited(CLEAN_LIMIT, world.backend.clear(&key.uid)).await {
                        Ok(()) => Event::Cleared,
                        Err(error) => {
                            warn!(instance = %key, %error, "processes are left");
                            Event::ClearFailed(error)
                        }
                    },
                )
            }),
            Action::Clean => self.effect(async move {
                if let Err(error) = limited(CLEAN_LIMIT, world.backend.clean(&key.uid)).await {
                    warn!(instance = %key, %error, "something was left for the next sweep");
                }
                Mail::Event(Event::Cleaned)
            }),
            Action::Report(status) => {
                info!(instance = %key, phase = ?status.phase, reason = status.reason, "reporting");
                self.unwritten = Some(status);
                self.write();
            }
            Action::WakeAt(time) => *wake = Some(time),
            Action::End => {}
        }
    }

    /// Writes the newest status, one write at a time.
    fn write(&mut self) {
        if self.writing {
            return;
        }
        let Some(status) = self.unwritten.take() else {
            return;
        };
        self.writing = true;
        let world = self.world.clone();
        let key = self.key.clone();
        let retry = self.write_retry;
        self.effect(async move {
            let result = {
                let _permit = world.calls.acquire().await;
                match tokio::time::timeout(CALL_LIMIT, world.api.write_status(&key, &status)).await
                {
                    Ok(result) => result,
                    Err(_) => Err(StatusWriteError::Failed(format!(
                        "no answer within {CALL_LIMIT:?}"
                    ))),
                }
            };
            if result.is_err() {
                tokio::time::sleep(retry).await;
            }
            Mail::Written(status, result)
        });
    }

    fn effect(&self, effect: impl Future<Output = Mail> + Send + 'static) {
        let mails = self.mail_out.clone();
        tokio::spawn(async move {
            let mail = effect.await;
            let _ = mails.send(mail).await;
        });
    }

    fn order(&self) -> Result<StartOrder, Failure> {
        match &self.instance {
            Some(instance) => Ok(StartOrder {
                key: self.key.clone(),
                instance: instance.clone(),
            }),
            None => Err(Failure::new(
                "HypervisorFailed",
                "the instance was not read yet",
            )),
        }
    }

    fn count(&self, event: &Event) {
        if let Event::Exited(..) = event
            && self.core.is_up()
        {
            self.world.metrics.unasked_ends.add(1);
        }
    }

    fn count_up(&mut self) {
        if self.core.is_up() != self.counted_up {
            self.counted_up = self.core.is_up();
            let change = if self.counted_up { 1 } else { -1 };
            self.world.metrics.instances_up.add(change);
        }
    }
}

impl<B> Drop for Actor<B> {
    fn drop(&mut self) {
        if self.counted_up {
            self.world.metrics.instances_up.add(-1);
        }
    }
}

/// The key of an instance as the API shows it; `None` without a uid or a namespace.
#[must_use]
pub fn key(instance: &VirtualMachineInstance) -> Option<GuestKey> {
    Some(GuestKey {
        uid: instance.uid()?,
        namespace: instance.namespace()?,
        name: instance.name_any(),
    })
}

async fn limited<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn limited_start<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(
            "HypervisorFailed",
            format!("the host did not get ready to start it within {limit:?}"),
        )),
    }
}
