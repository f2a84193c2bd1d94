//! Lines from QEMU: no input panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_vmm::lifecycle::QemuEvent;
use paddock_vmm::qmp::Message;

fuzz_target!(|line: &[u8]| {
    if let Ok(Message::Event { name, data }) = Message::parse(line) {
        let _ = QemuEvent::from_qmp(&name, &data, |node| Some(node.to_owned()));
    }
});
