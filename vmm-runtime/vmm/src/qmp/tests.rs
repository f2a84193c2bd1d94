//! A fake QEMU on the other end of a pipe.

use serde_json::json;
use tokio::io::{
    AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::lifecycle::{Command, Input, QemuEvent};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}"#;

struct FakeQemu {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    writer: WriteHalf<DuplexStream>,
}

impl FakeQemu {
    async fn say(&mut self, line: &str) {
        self.writer.write_all(line.as_bytes()).await.unwrap();
        self.writer.write_all(b"\r\n").await.unwrap();
    }

    async fn hear(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }
}

struct Conversation {
    qemu: FakeQemu,
    commands: mpsc::Sender<Command>,
    inputs: mpsc::Receiver<Input>,
    task: JoinHandle<Result<(), QmpError>>,
}

fn start() -> Conversation {
    let (ours, theirs) = tokio::io::duplex(1024);
    let (command_sender, commands) = mpsc::channel(8);
    let (input_sender, inputs) = mpsc::channel(8);
    let disk = |node: &str| (node == "disk0").then(|| "root".to_owned());
    let task = tokio::spawn(converse(ours, commands, input_sender, disk));
    let (reader, writer) = tokio::io::split(theirs);
    let qemu = FakeQemu {
        lines: BufReader::new(reader).lines(),
        writer,
    };
    Conversation {
        qemu,
        commands: command_sender,
        inputs,
        task,
    }
}

async fn start_ready() -> Conversation {
    let mut conversation = start();
    conversation.qemu.say(GREETING).await;
    assert_eq!(
        conversation.qemu.hear().await,
        r#"{"execute":"qmp_capabilities","id":0}"#
    );
    conversation.qemu.say(r#"{"return": {}, "id": 0}"#).await;
    assert_eq!(conversation.inputs.recv().await, Some(Input::Ready));
    conversation
}

#[tokio::test]
async fn commands_are_numbered_and_answers_find_them() {
    let mut c = start_ready().await;
    c.commands.send(Command::Cont).await.unwrap();
    c.commands.send(Command::PowerButton).await.unwrap();
    assert_eq!(c.qemu.hear().await, r#"{"execute":"cont","id":1}"#);
    assert_eq!(
        c.qemu.hear().await,
        r#"{"execute":"system_powerdown","id":2}"#
    );
    c.qemu
        .say(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#)
        .await;
    c.qemu.say(r#"{"id": 1, "return": {}}"#).await;
    c.qemu.say(r#"{"id": 77, "return": {}}"#).await;
    c.qemu
        .say(r#"{"id": 2, "error": {"class": "GenericError", "desc": "no button"}}"#)
        .await;
    assert_eq!(
        c.inputs.recv().await,
        Some(Input::Event(QemuEvent::Resumed))
    );
    assert_eq!(
        c.inputs.recv().await,
        Some(Input::Answered {
            command: Command::Cont,
            error: None
        })
    );
    assert_eq!(
        c.inputs.recv().await,
        Some(Input::Answered {
            command: Command::PowerButton,
            error: Some("no button".into())
        })
    );
    drop(c.qemu);
    c.task.await.unwrap().unwrap();
    assert_eq!(c.inputs.recv().await, None);
}

#[tokio::test]
async fn a_message_in_pieces_is_put_together() {
    let mut c = start_ready().await;
    for piece in [
        r#"{"event": "#,
        r#""STOP"}"#,
        "\n",
        r#"{"event": "RESET"}"#,
        "\n",
    ] {
        c.qemu.writer.write_all(piece.as_bytes()).await.unwrap();
        c.qemu.writer.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(c.inputs.recv().await, Some(Input::Event(QemuEvent::Paused)));
    assert_eq!(c.inputs.recv().await, Some(Input::Event(QemuEvent::Reset)));
}

#[tokio::test]
async fn what_is_not_qemu_is_refused() {
    let mut c = start();
    c.qemu.say(r#"{"return": {}}"#).await;
    assert!(matches!(
        c.task.await.unwrap(),
        Err(QmpError::Negotiation {
            expected: "a greeting",
            ..
        })
    ));

    let mut c = start();
    c.qemu.say(GREETING).await;
    c.qemu
        .say(r#"{"id": 0, "error": {"class": "GenericError", "desc": "never"}}"#)
        .await;
    assert!(matches!(
        c.task.await.unwrap(),
        Err(QmpError::Negotiation {
            expected: "capabilities taken",
            ..
        })
    ));

    let mut c = start_ready().await;
    c.qemu.say("SeaBIOS").await;
    assert!(matches!(c.task.await.unwrap(), Err(QmpError::Message(_))));

    let mut c = start_ready().await;
    let flood = tokio::spawn(async move {
        let _ = c
            .qemu
            .writer
            .write_all(&vec![b'x'; MAX_LINE_BYTES + 1])
            .await;
    });
    assert!(matches!(c.task.await.unwrap(), Err(QmpError::LineTooLong)));
    flood.await.unwrap();
}

#[test]
fn events_are_understood() {
    let disk = |node: &str| (node == "disk0").then(|| "root".to_owned());
    let event = |name: &str, data| QemuEvent::from_qmp(name, &data, disk);
    assert_eq!(
        event(
            "SHUTDOWN",
            json!({"guest": true, "reason": "guest-shutdown"})
        ),
        Some(QemuEvent::GuestShutDown)
    );
    assert_eq!(
        event("SHUTDOWN", json!({"guest": true, "reason": "guest-panic"})),
        Some(QemuEvent::GuestPanicked)
    );
    assert_eq!(
        event("SHUTDOWN", json!({"guest": false, "reason": "host-signal"})),
        Some(QemuEvent::HostShutDown {
            reason: "host-signal".into()
        })
    );
    let error = json!({
        "device": "", "node-name": "disk0", "operation": "write", "action": "stop", "nospace": true, "reason": "x"
    });
    assert_eq!(
        event("BLOCK_IO_ERROR", error),
        Some(QemuEvent::WriteFailed {
            disk: "root".into(),
            no_space: true,
            stops: true
        })
    );
    let error =
        json!({"device": "", "node-name": "other", "operation": "write", "action": "report"});
    assert_eq!(
        event("BLOCK_IO_ERROR", error),
        Some(QemuEvent::WriteFailed {
            disk: "other".into(),
            no_space: false,
            stops: false
        })
    );
    assert_eq!(event("BLOCK_IO_ERROR", json!({"operation": "read"})), None);
    assert_eq!(event("RTC_CHANGE", json!({"offset": 1})), None);
}
