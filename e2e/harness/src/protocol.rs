//! What commands and the supervisor say to each other over `control.sock`: a line of JSON each way; answers may be preceded by
//! progress lines and carry file descriptors.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::network::cuts::Direction;

/// Longest line in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Most descriptors with one answer.
const MAX_DESCRIPTORS: usize = 2;

/// How agents run guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Real guests, by QEMU.
    #[default]
    Qemu,
    /// Pretended guests, for tests of scale.
    Hollow,
}

impl Backend {
    /// The value of the agent's flag.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Hollow => "hollow",
        }
    }
}

/// A host that should exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRequest {
    /// Its name: a DNS label.
    pub name: String,
    /// The memory it believes it has, in MiB.
    pub memory_mib: u64,
    /// How its agent runs guests.
    pub backend: Backend,
}

/// What should run; what runs already stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpRequest {
    /// Hosts with namespaces of their own.
    pub hosts: Vec<HostRequest>,
    /// Hosts that are a plain process each.
    pub hollow_hosts: u32,
    /// Whether the operator runs in the lab.
    pub operator: bool,
    /// Folder whose `tiny-linux.*` go into the pool `images`.
    pub image: Option<PathBuf>,
    /// How long to wait for readiness, in seconds.
    pub timeout_seconds: u64,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Start what is missing.
    Up(UpRequest),
    /// Say what runs.
    Status,
    /// Hand out a descriptor to enter `target` by.
    Enter {
        /// A host, `lab`, `api` or `operator`.
        target: String,
    },
    /// Hand out a VM's console.
    Console {
        /// The VM's namespace.
        namespace: String,
        /// The VM's name.
        name: String,
    },
    /// Break or mend something.
    Fault(Fault),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reply {
    /// Not the end: something was done.
    Progress(String),
    /// It failed.
    Error(String),
    /// It was done; the text says what.
    Done(String),
    /// Answer to [`Request::Up`]: what is not as asked, empty when all is ready.
    Up {
        /// One sentence each.
        missing: Vec<String>,
    },
    /// Answer to [`Request::Status`].
    Status(LabStatus),
    /// Answer to [`Request::Enter`], with one descriptor.
    Enter {
        /// A process (pidfd) whose namespaces to enter; else a network namespace.
        process: bool,
    },
    /// Answer to [`Request::Console`], with the connected console and the console's log.
    Console {
        /// The host that runs the VM.
        host: String,
    },
}

/// What a lab is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabStatus {
    /// Its id.
    pub id: String,
    /// Its folder.
    pub directory: PathBuf,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The management subnet.
    pub subnet: String,
    /// Whether the API server says it is ready.
    pub api_ready: bool,
    /// The processes besides hosts.
    pub services: Vec<ServiceStatus>,
    /// The hosts, hollow ones too.
    pub hosts: Vec<HostStatus>,
}

/// A supervised process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its name, also of its log.
    pub name: String,
    /// Running, Stopped or Restarting.
    pub state: ServiceState,
    /// Times it was started anew.
    pub restarts: u32,
    /// Its process id inside the lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// How its link is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Direction>,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// It runs.
    Running,
    /// It ended and will be started again in a moment.
    Restarting,
    /// It was stopped on purpose.
    Stopped,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// Its address on the management network.
    pub address: Ipv4Addr,
    /// What it is doing.
    pub state: HostState,
    /// Times it was booted.
    pub boots: u32,
    /// Identity of the boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Its agent.
    pub agent: ServiceStatus,
    /// How its management link is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Direction>,
    /// Whether its LAN link is cut.
    pub lan_cut: bool,
    /// Whether it is a plain process.
    pub hollow: bool,
    /// Whether its lease is held; `None` when the API server did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_held: Option<bool>,
}

/// What a host is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostState {
    /// On its way up.
    Booting,
    /// Up.
    Running,
    /// Frozen.
    Paused,
    /// Off.
    Down,
}

/// One end of a conversation. Reads are buffered, so an end is used for all of it.
pub struct Channel {
    reader: BufReader<DescriptorReader>,
}

/// Reads bytes and collects the descriptors that come with them.
struct DescriptorReader {
    stream: UnixStream,
    received: Vec<OwnedFd>,
}

impl Read for DescriptorReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.received.extend(descriptors);
            }
        }
        Ok(message.bytes)
    }
}

impl Channel {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            reader: BufReader::new(DescriptorReader {
                stream,
                received: Vec::new(),
            }),
        }
    }

    /// Sends a message with descriptors.
    pub fn send(&mut self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        let mut descriptors = descriptors;
        while !rest.is_empty() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                bail!("at most {MAX_DESCRIPTORS} descriptors fit one message");
            }
            let stream = &self.reader.get_ref().stream;
            let sent = sendmsg(
                stream.as_fd(),
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .context("control socket")?;
            rest = &rest[sent..];
            descriptors = &[];
        }
        Ok(())
    }

    /// The next message; `None` at the end of the conversation.
    pub fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>> {
        let mut line = Vec::new();
        self.reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .context("control socket")?;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => serde_json::from_slice(&line)
                .context("unexpected message on the control socket")
                .map(Some),
            Some(_) => bail!("the conversation on the control socket broke off"),
        }
    }

    /// The descriptors received so far.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.reader.get_mut().received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"hello").unwrap();
        a.send(&Reply::Progress("one".into()), &[]).unwrap();
        a.send(&Reply::Enter { process: true }, &[file.as_fd()])
            .unwrap();
        assert_eq!(
            b.receive::<Reply>().unwrap(),
            Some(Reply::Progress("one".into()))
        );
        assert_eq!(
            b.receive::<Reply>().unwrap(),
            Some(Reply::Enter { process: true })
        );
        let received = b.take_descriptors();
        assert_eq!(received.len(), 1);
        assert_eq!(
            std::fs::File::from(received.into_iter().next().unwrap())
                .metadata()
                .unwrap()
                .len(),
            5
        );
        drop(a);
        assert_eq!(b.receive::<Reply>().unwrap(), None);
    }

    #[test]
    fn half_a_line_and_junk_are_errors() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Channel::new(b);
        a.write_all(b"junk\n{\"status\"").unwrap();
        drop(a);
        assert!(b.receive::<Request>().is_err());
        assert!(
            b.receive::<Request>()
                .unwrap_err()
                .to_string()
                .contains("broke off")
        );
    }

    #[test]
    fn requests_keep_their_form() {
        let request = Request::Fault(Fault::Cut {
            target: "host-a".into(),
            direction: Direction::ToApi,
        });
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            text,
            r#"{"fault":{"cut":{"target":"host-a","direction":"to-api"}}}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}
