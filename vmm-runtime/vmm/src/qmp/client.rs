//! The conversation with one QEMU.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::message::{MAX_LINE_BYTES, Message, MessageError};
use crate::lifecycle::{Command, Input, QemuEvent};

/// Why a conversation ended otherwise than by QEMU hanging up.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed.
    #[error("the connection to QEMU: {0}")]
    Io(#[from] io::Error),
    /// A line that cannot be understood.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A line that is too long.
    #[error("a line of QEMU has more than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The first line is not a greeting, or QEMU stays in negotiation mode.
    #[error("QEMU did not take up the conversation: expected {expected}, found {found}")]
    Negotiation {
        /// What should have come.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

/// Greets QEMU, then passes commands to it and what it says to `inputs`, until it hangs up or nobody listens.
///
/// `disk` finds a disk's name by its block node.
pub async fn converse<T: From<Input>>(
    stream: impl AsyncRead + AsyncWrite,
    mut commands: mpsc::Receiver<Command>,
    inputs: mpsc::Sender<T>,
    disk: impl Fn(&str) -> Option<String>,
) -> Result<(), QmpError> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines {
        reader: BufReader::new(reader),
        line: Vec::new(),
    };

    match lines.next().await? {
        Some(Message::Greeting {
            version: (major, minor, micro),
        }) => info!("QEMU {major}.{minor}.{micro}"),
        found => {
            return Err(QmpError::Negotiation {
                expected: "a greeting",
                found: format!("{found:?}"),
            });
        }
    }
    writer
        .write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n")
        .await?;
    match lines.next().await? {
        Some(Message::Return { id: Some(0) }) => {}
        found => {
            return Err(QmpError::Negotiation {
                expected: "capabilities taken",
                found: format!("{found:?}"),
            });
        }
    }
    if inputs.send(Input::Ready.into()).await.is_err() {
        return Ok(());
    }

    let mut pending = BTreeMap::new();
    let mut last_id = 0_u64;
    loop {
        let input = tokio::select! {
            message = lines.next() => match message? {
                None => return Ok(()),
                Some(Message::Greeting { .. }) => None,
                Some(Message::Event { name, data }) => {
                    debug!("{name} {data}");
                    QemuEvent::from_qmp(&name, &data, &disk).map(Input::Event)
                }
                Some(Message::Return { id }) => id
                    .and_then(|id| pending.remove(&id))
                    .map(|command| Input::Answered { command, error: None }),
                Some(Message::Error { id, description }) => id
                    .and_then(|id| pending.remove(&id))
                    .map(|command| Input::Answered { command, error: Some(description) }),
            },
            command = commands.recv() => {
                let Some(command) = command else { return Ok(()) };
                last_id += 1;
                pending.insert(last_id, command);
                let line = format!("{{\"execute\":\"{}\",\"id\":{last_id}}}\n", command.name());
                debug!("{}", line.trim_end());
                writer.write_all(line.as_bytes()).await?;
                None
            }
        };
        if let Some(input) = input
            && inputs.send(input.into()).await.is_err()
        {
            return Ok(());
        }
    }
}

struct Lines<R> {
    reader: R,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// The next message; `None` at the end. Cancel safe: what was read stays in `line`.
    async fn next(&mut self) -> Result<Option<Message>, QmpError> {
        loop {
            let read = match self.reader.fill_buf().await {
                // It ended before it had read all that was sent to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                read => read?,
            };
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            if self.line.len() + taken > MAX_LINE_BYTES {
                return Err(QmpError::LineTooLong);
            }
            self.line.extend(read.iter().take(taken));
            self.reader.consume(taken);
            if end.is_some() {
                let message = Message::parse(self.line.trim_ascii());
                self.line.clear();
                return Ok(Some(message?));
            }
        }
    }
}
