//! Carries out what [`Lifecycle`] decides: the one queue, the child, the disks, the status.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::api::{EndReason, RunResult, State, Status};
use crate::bounded_log::BoundedLog;
use crate::config::ValidVmConfig;
use crate::console::{ConsolePort, console};
use crate::disks::{NotOpened, TellHeld};
use crate::hold::Told;
use crate::lifecycle::{Action, Command, End, Input, Lifecycle, View};
use crate::qemu::command_line::disk_of_node;
use crate::qemu::process::{Launched, launch};
use crate::qmp::converse;
use crate::resources::Resources;
use crate::run_directory::{API_SOCKET, CONSOLE_LOG, CONSOLE_SOCKET, QEMU_LOG, RunDirectory};
use crate::server::{ApiCall, ApiRequest, ApiServer};

/// Messages that wait. Senders wait for room, but for the API, which answers `Busy`.
const QUEUE: usize = 64;
/// More than there are commands, each of which is outstanding at most once.
const COMMANDS: usize = 8;
/// Of `qemu.log` and `qemu.log.1` together, in bytes.
const QEMU_LOG_BYTES: u64 = 256 << 10;
/// How much of QEMU's last words goes into a message, in bytes.
const LOG_TAIL_BYTES: usize = 1024;
/// How long to wait for the end of the child's error output after its exit.
const LOG_DRAIN: Duration = Duration::from_secs(1);

/// What arrives in the queue.
pub(crate) enum Message {
    Input(Input),
    Call(ApiCall),
    Opened(Result<Resources, NotOpened>),
}

impl From<Input> for Message {
    fn from(input: Input) -> Self {
        Message::Input(input)
    }
}

/// Why a run could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A socket or a file in the run directory.
    #[error(transparent)]
    RunDirectory(#[from] crate::run_directory::RunDirectoryError),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs one machine from its start to its end, and writes its result.
///
/// Must run on the current-thread runtime of a thread that lives as long as the process (see `qemu::process`).
pub async fn supervise(
    config: ValidVmConfig,
    directory: RunDirectory,
) -> Result<RunResult, SuperviseError> {
    let directory = Arc::new(directory);
    let log = open_log(&directory.file(CONSOLE_LOG), config.log_bytes)?;
    let (console, console_port) = console(log);
    let api_listener = async_listener(directory.listen(API_SOCKET)?)?;
    let console_listener = async_listener(directory.listen(CONSOLE_SOCKET)?)?;

    let machine = Lifecycle::new(Duration::from_secs(config.stop_deadline_seconds.into()));
    let (status, status_receiver) =
        watch::channel(status(&config, machine.view(), Timestamp::now()));
    let (queue, messages) = mpsc::channel(QUEUE);
    let (ending, ending_receiver) = watch::channel(false);
    let api = ApiServer {
        calls: queue.clone(),
        status: status_receiver,
    };
    let api = tokio::spawn(api.serve(api_listener, ending_receiver));
    let console = tokio::spawn(console.accept_all(console_listener));
    forward_signals(queue.clone())?;

    let supervisor = Supervisor {
        config,
        directory: directory.clone(),
        machine,
        started: Instant::now(),
        queue,
        status,
        console_port: Some(console_port),
        resources: None,
        commands: None,
        kill: None,
        end: None,
    };
    let result = supervisor.run(messages).await;
    // Streams have the last status; they end, then their connections.
    ending.send_replace(true);
    if let Err(error) = api.await {
        warn!("the API's task: {error}");
    }
    console.abort();
    directory.remove_sockets()?;
    Ok(result)
}

fn open_log(path: &Path, max: u64) -> Result<BoundedLog, SuperviseError> {
    BoundedLog::open(path, max).map_err(|source| SuperviseError::Io {
        what: "open a log",
        source,
    })
}

fn async_listener(
    listener: std::os::unix::net::UnixListener,
) -> Result<tokio::net::UnixListener, SuperviseError> {
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map_err(|source| SuperviseError::Io {
            what: "listen",
            source,
        })
}

/// SIGTERM and SIGINT stop the guest in good order. SIGHUP does nothing: there is no terminal to lose.
fn forward_signals(queue: mpsc::Sender<Message>) -> Result<(), SuperviseError> {
    let listen = |kind| {
        signal(kind).map_err(|source| SuperviseError::Io {
            what: "listen for signals",
            source,
        })
    };
    let mut hang_up = listen(SignalKind::hangup())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hang_up.recv() => continue,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("asked to stop by a signal");
            if queue.send(Input::Terminate.into()).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

struct Supervisor {
    config: ValidVmConfig,
    directory: Arc<RunDirectory>,
    machine: Lifecycle,
    started: Instant,
    queue: mpsc::Sender<Message>,
    status: watch::Sender<Status>,
    console_port: Option<ConsolePort>,
    resources: Option<Resources>,
    commands: Option<mpsc::Sender<Command>>,
    kill: Option<oneshot::Sender<()>>,
    end: Option<End>,
}

impl Supervisor {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) -> RunResult {
        self.feed(Input::Begin);
        loop {
            if let Some(end) = self.end.take() {
                return self.finish(end);
            }
            let deadline = self.machine.deadline();
            let tick = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(self.started + deadline).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                () = tick => Message::Input(Input::Tick),
                // `self` holds a sender, so the queue never closes.
                Some(message) = messages.recv() => message,
            };
            match message {
                Message::Input(input) => self.feed(input),
                Message::Opened(Ok(resources)) => {
                    self.resources = Some(resources);
                    self.feed(Input::Opened);
                }
                Message::Opened(Err(NotOpened { reason, message })) => {
                    self.feed(Input::NotOpened { reason, message });
                }
                Message::Call(call) => self.call(call),
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn feed(&mut self, input: Input) {
        debug!("{input:?}");
        if input == Input::Ready
            && let Some(resources) = &self.resources
        {
            resources.forget_boot_files();
        }
        let actions = self.machine.step(self.now(), input);
        self.perform(actions);
    }

    fn call(&mut self, call: ApiCall) {
        debug!("{:?}", call.request);
        let now = self.now();
        let taken = match call.request {
            ApiRequest::Power(request) => {
                let deadline = request
                    .deadline_seconds
                    .map(|seconds| Duration::from_secs(seconds.into()));
                self.machine.set_power(now, request.power, deadline)
            }
            ApiRequest::Reset(request) => self.machine.reset(&request.token),
        };
        let answer = taken.map(|actions| {
            self.perform(actions);
            self.status.borrow().clone()
        });
        // The client may be gone.
        let _ = call.answer.send(answer);
    }

    /// Does what was decided, including what follows at once.
    fn perform(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        self.publish();
        while let Some(action) = actions.pop_front() {
            debug!("{action:?}");
            let follows = match action {
                Action::Open => self.open(),
                Action::Launch => Some(self.launch()),
                Action::Command(command) => {
                    // Closed when QEMU has hung up; then that is in the queue.
                    let sent = self
                        .commands
                        .as_ref()
                        .map(|commands| commands.try_send(command));
                    debug!("{command}: {sent:?}");
                    None
                }
                Action::Kill => {
                    if let Some(kill) = self.kill.take() {
                        let _ = kill.send(());
                    }
                    None
                }
                Action::RetryHeld => {
                    if let Some(resources) = &self.resources {
                        resources.disks.retry_held();
                    }
                    None
                }
                Action::LetHeldFail => {
                    if let Some(resources) = &self.resources {
                        resources.disks.give_up_held();
                    }
                    None
                }
                Action::Close => self.close(),
                Action::Finish(end) => {
                    self.end = Some(end);
                    // Published once the result is on the disk.
                    return;
                }
            };
            if let Some(input) = follows {
                debug!("{input:?}");
                actions.extend(self.machine.step(self.now(), input));
                self.publish();
            }
        }
    }

    fn open(&self) -> Option<Input> {
        let (config, directory, queue) = (
            self.config.clone(),
            self.directory.clone(),
            self.queue.clone(),
        );
        let opening = move || {
            let opened = Resources::open(&config, &directory, &tell_held(queue.clone()));
            let _ = queue.blocking_send(Message::Opened(opened));
        };
        let error = std::thread::Builder::new()
            .name("open".to_owned())
            .spawn(opening)
            .err()?;
        Some(Input::NotOpened {
            reason: EndReason::HostError,
            message: format!("start a thread: {error}"),
        })
    }

    fn close(&mut self) -> Option<Input> {
        let Some(resources) = self.resources.take() else {
            return Some(Input::Closed { problem: None });
        };
        let queue = self.queue.clone();
        let closing = move || {
            let problem = resources.disks.close().err();
            let _ = queue.blocking_send(Input::Closed { problem }.into());
        };
        let error = std::thread::Builder::new()
            .name("close".to_owned())
            .spawn(closing)
            .err()?;
        Some(Input::Closed {
            problem: Some(format!(
                "the disks were not flushed: start a thread: {error}"
            )),
        })
    }

    fn launch(&mut self) -> Input {
        let not_launched = |message: String| Input::NotLaunched {
            reason: EndReason::QemuNotStarted,
            message,
        };
        let Some(resources) = &mut self.resources else {
            return not_launched("nothing was opened for it".to_owned());
        };
        let taps = std::mem::take(&mut resources.taps);
        let launched = match launch(&self.config, &resources.folder.handle, &taps) {
            Ok(launched) => launched,
            Err(error) => {
                return not_launched(format!("{}: {error}", self.config.qemu_binary.display()));
            }
        };
        let pid = launched.pid;
        info!(pid, "QEMU was started");
        match self.attach(launched) {
            Ok(()) => Input::Launched { pid },
            // Dropping the child has killed it, and nothing has run in it.
            Err(error) => not_launched(format!("talk to QEMU: {error}")),
        }
    }

    /// Starts the tasks that talk to QEMU and wait for its end.
    fn attach(&mut self, launched: Launched) -> std::io::Result<()> {
        let Launched {
            mut child,
            qmp,
            serial,
            ..
        } = launched;
        qmp.set_nonblocking(true)?;
        let qmp = tokio::net::UnixStream::from_std(qmp)?;
        serial.set_nonblocking(true)?;
        let serial = tokio::net::UnixStream::from_std(serial)?;
        let log = BoundedLog::open(&self.directory.file(QEMU_LOG), QEMU_LOG_BYTES)?;
        let last_words = child
            .stderr
            .take()
            .map(|stderr| tokio::spawn(keep_log(stderr, log)));

        let (commands, command_receiver) = mpsc::channel(COMMANDS);
        self.commands = Some(commands);
        let names: Vec<String> = self
            .config
            .disks
            .iter()
            .map(|disk| disk.name.clone())
            .collect();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            let disk = |node: &str| names.get(disk_of_node(node)?).cloned();
            match converse(qmp, command_receiver, queue.clone(), disk).await {
                Ok(()) => debug!("QEMU closed the control connection"),
                Err(error) => warn!("the conversation with QEMU ended: {error}"),
            }
            let _ = queue.send(Input::ConnectionClosed.into()).await;
        });
        if let Some(port) = self.console_port.take() {
            tokio::spawn(port.connect(serial));
        }
        let (kill, killed) = oneshot::channel();
        self.kill = Some(kill);
        tokio::spawn(wait_for_exit(child, killed, last_words, self.queue.clone()));
        Ok(())
    }

    fn publish(&self) {
        let view = self.machine.view();
        if view.state.is_final() {
            return;
        }
        self.publish_view(view);
    }

    fn publish_view(&self, view: View) {
        self.status.send_if_modified(|old| {
            let since = if old.state == view.state {
                old.since
            } else {
                Timestamp::now()
            };
            let new = status(&self.config, view, since);
            if *old == new {
                return false;
            }
            if old.state != new.state {
                info!(state = ?new.state, message = new.message, "state");
            }
            *old = new;
            true
        });
    }

    fn finish(self, end: End) -> RunResult {
        let view = self.machine.view();
        let result = RunResult {
            outcome: end.outcome,
            stop_step: end.stop_step,
            reason: end.reason,
            message: end.message,
            resets: view.resets,
            time: Timestamp::now(),
        };
        if let Err(error) = self.directory.write_result(&result) {
            // Without it the run counts as crashed, which is restarted just the same.
            error!("{error}");
        }
        self.publish_view(view);
        result
    }
}

fn tell_held(queue: mpsc::Sender<Message>) -> TellHeld {
    Arc::new(move |disk, told| {
        let disk = disk.to_owned();
        let input = match told {
            Told::Full(why) => Input::PoolFull { disk, why },
            Told::Room => Input::PoolHasRoom { disk },
        };
        // Nobody listens any more: the run has ended.
        let _ = queue.blocking_send(input.into());
    })
}

fn status(config: &ValidVmConfig, view: View, since: Timestamp) -> Status {
    let View {
        state,
        qemu_pid,
        resets,
        reset_token,
        pause_reason,
        stop_step,
        message,
    } = view;
    Status {
        id: config.id.clone(),
        name: config.name.clone(),
        host_epoch: config.host_epoch,
        state,
        since,
        pid: std::process::id(),
        qemu_pid,
        resets,
        reset_token,
        pause_reason: pause_reason.filter(|_| state == State::Paused),
        stop_step,
        message,
    }
}

/// Keeps what QEMU writes to its error output; returns the end of it.
async fn keep_log(mut stderr: ChildStderr, mut log: BoundedLog) -> String {
    let mut tail: VecDeque<u8> = VecDeque::new();
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        if let Err(error) = log.write(bytes) {
            debug!("QEMU's log: {error}");
        }
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(LOG_TAIL_BYTES);
        tail.drain(..surplus);
    }
    String::from_utf8_lossy(&Vec::from(tail)).into_owned()
}

async fn wait_for_exit(
    mut child: Child,
    mut killed: oneshot::Receiver<()>,
    last_words: Option<JoinHandle<String>>,
    queue: mpsc::Sender<Message>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        // Dropped instead of sent: nobody will kill it, so only its end is waited for.
        Ok(()) = &mut killed => {
            if let Err(error) = child.start_kill() {
                warn!("kill QEMU: {error}");
            }
            child.wait().await
        }
    };
    let status = match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("its exit status is not known: {error}"),
    };
    let log_tail = match last_words {
        // A child of QEMU could hold the pipe; its sandbox forbids it to have one, but nothing waits on that.
        Some(task) => tokio::time::timeout(LOG_DRAIN, task)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default(),
        None => String::new(),
    };
    info!(status, "QEMU has ended");
    let _ = queue.send(Input::Exited { status, log_tail }.into()).await;
}
