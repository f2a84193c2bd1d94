//! A server on one tap: reads frames, asks [`super::core`], sends the answer
//! and tells of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::core::{Answer, Assignment, respond};
use super::event::{LeaseEvent, LeaseEventKind};
use super::frame::{Addresses, build, parse};
use super::message::{MessageType, Request};
use super::socket::{FRAME_BYTES, TapSocket};
use crate::error::DhcpSocketError;
use crate::names::{MacAddress, NetworkId, TapName};

/// Most frames of one guest that are looked at in a second: a client sends a
/// handful.
const FRAMES_PER_SECOND: u32 = 50;

/// What a server works by; may change while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub network: NetworkId,
    pub tap: TapName,
    /// Source of its frames.
    pub mac: MacAddress,
    pub assignment: Assignment,
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    index: u32,
    service: watch::Sender<Arc<Service>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts listening on the tap of this index.
    pub fn start(
        index: u32,
        service: Service,
        events: Option<mpsc::Sender<LeaseEvent>>,
    ) -> Result<Self, DhcpSocketError> {
        let socket = TapSocket::open(service.tap.as_str(), index)?;
        let (service, current) = watch::channel(Arc::new(service));
        let task = tokio::spawn(serve(socket, current, events));
        Ok(Self {
            index,
            service,
            task,
        })
    }

    /// Whether it still listens on the tap of this index.
    pub fn serves(&self, index: u32) -> bool {
        self.index == index && !self.task.is_finished()
    }

    /// Changes what it works by, from its next answer on.
    pub fn update(&self, service: Service) {
        self.service.send_if_modified(|current| {
            let differs = **current != service;
            if differs {
                *current = Arc::new(service);
            }
            differs
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    socket: TapSocket,
    service: watch::Receiver<Arc<Service>>,
    events: Option<mpsc::Sender<LeaseEvent>>,
) {
    let mut buffer = [0; FRAME_BYTES];
    let mut budget = Budget::new(Instant::now());
    loop {
        match socket.receive(&mut buffer).await {
            Ok(frame) => {
                let service = service.borrow().clone();
                if let Err(error) = handle(&socket, &service, frame, events.as_ref()) {
                    // The tap is down or its queue is full: the guest asks again.
                    tracing::debug!(tap = %service.tap, %error, "DHCP answer not sent");
                }
            }
            // The tap went down; it may come up again.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => {
                let tap = service.borrow().tap.clone();
                tracing::warn!(%tap, %error, "the DHCP server of this tap ends; ensuring the adapter starts it again");
                return;
            }
        }
        if let Some(pause) = budget.spend(Instant::now()) {
            tokio::time::sleep(pause).await;
        }
    }
}

fn handle(
    socket: &TapSocket,
    service: &Service,
    frame: &[u8],
    events: Option<&mpsc::Sender<LeaseEvent>>,
) -> io::Result<()> {
    let Some((frame, kind)) = answer(service, frame) else {
        return Ok(());
    };
    if let Some(frame) = frame {
        socket.send(&frame)?;
    }
    if let (Some(kind), Some(events)) = (kind, events) {
        let event = LeaseEvent {
            network: service.network.clone(),
            tap: service.tap.clone(),
            mac: service.assignment.mac,
            ip: service.assignment.ip,
            kind,
        };
        if events.try_send(event).is_err() {
            tracing::warn!(tap = %service.tap, ?kind, "nobody took the DHCP lease event");
        }
    }
    Ok(())
}

/// The frame to send and the event to tell; `None` for silence.
fn answer(service: &Service, frame: &[u8]) -> Option<(Option<Vec<u8>>, Option<LeaseEventKind>)> {
    let assignment = &service.assignment;
    let datagram = parse(frame)?;
    if datagram.source != assignment.mac.bytes() {
        return None;
    }
    let request = match Request::parse(datagram.payload) {
        Ok(request) => request,
        Err(error) => {
            tracing::debug!(tap = %service.tap, %error, "DHCP request ignored");
            return None;
        }
    };
    match respond(assignment, &request) {
        Answer::Silence => None,
        Answer::Released => Some((None, Some(LeaseEventKind::Released))),
        Answer::Declined => Some((None, Some(LeaseEventKind::Declined))),
        Answer::Reply(reply) => {
            let addresses = Addresses {
                source_mac: service.mac,
                client_mac: assignment.mac,
                source: assignment.server,
                destination: reply.destination,
            };
            let leased = reply.kind == MessageType::Ack && request.kind == MessageType::Request;
            Some((
                Some(build(&addresses, &reply.payload)?),
                leased.then_some(LeaseEventKind::Leased),
            ))
        }
    }
}

/// Counts frames within a second.
#[derive(Debug)]
struct Budget {
    since: Instant,
    spent: u32,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            spent: 0,
        }
    }

    /// Counts one frame; says how long to pause when the second's are spent.
    fn spend(&mut self, now: Instant) -> Option<Duration> {
        let second = Duration::from_secs(1);
        let past = now.duration_since(self.since);
        if past >= second {
            *self = Self::new(now);
        }
        self.spent += 1;
        (self.spent >= FRAMES_PER_SECOND)
            .then(|| second.saturating_sub(now.duration_since(self.since)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn service() -> Service {
        Service {
            network: NetworkId::new("net-1").unwrap(),
            tap: TapName::new("pdt0123456789a").unwrap(),
            mac: "02:00:00:00:00:99".parse().unwrap(),
            assignment: Assignment {
                mac: "02:00:00:00:00:01".parse().unwrap(),
                ip: Ipv4Addr::new(10, 1, 2, 20),
                subnet: "10.1.2.0/24".parse().unwrap(),
                server: Ipv4Addr::new(10, 1, 2, 1),
                lease_seconds: 3600,
                gateway: None,
                dns: Vec::new(),
                hostname: None,
                mtu: None,
            },
        }
    }

    /// A client's frame from one MAC address about another, with options 53
    /// and 50.
    fn frame(source: u8, client: u8, kind: u8) -> Vec<u8> {
        let mut payload = vec![0; 240];
        payload[..3].copy_from_slice(&[1, 1, 6]);
        payload[28..34].copy_from_slice(&[2, 0, 0, 0, 0, client]);
        payload[236..].copy_from_slice(&[99, 130, 83, 99]);
        payload.extend([53, 1, kind, 50, 4, 10, 1, 2, 20]);
        let addresses = Addresses {
            source_mac: MacAddress::new([2, 0, 0, 0, 0, source]).unwrap(),
            client_mac: MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap(),
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::BROADCAST,
        };
        let mut frame = build(&addresses, &payload).unwrap();
        // To the server's port, not to the client's.
        frame[37] = 67;
        frame
    }

    #[test]
    fn only_the_adapter_itself_is_answered() {
        let events =
            |frame: &[u8]| answer(&service(), frame).map(|(frame, event)| (frame.is_some(), event));
        assert_eq!(events(&frame(1, 1, 1)), Some((true, None)));
        assert_eq!(
            events(&frame(1, 1, 3)),
            Some((true, Some(LeaseEventKind::Leased)))
        );
        assert_eq!(
            events(&frame(1, 1, 4)),
            Some((false, Some(LeaseEventKind::Declined)))
        );
        for kind in [1, 3, 4] {
            assert_eq!(events(&frame(2, 1, kind)), None, "another sender, {kind}");
            assert_eq!(events(&frame(1, 2, kind)), None, "another client, {kind}");
        }
        assert_eq!(events(&frame(1, 1, 99)), None);
        assert_eq!(events(b"short"), None);
    }

    #[test]
    fn the_answer_comes_from_the_server() {
        let (sent, _) = answer(&service(), &frame(1, 1, 3)).unwrap();
        let sent = sent.unwrap();
        assert_eq!(sent[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!(sent[6..12], [2, 0, 0, 0, 0, 0x99]);
        assert_eq!(sent[26..34], [10, 1, 2, 1, 10, 1, 2, 20]);
    }

    #[test]
    fn a_flood_is_slowed_to_the_budget() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut budget = Budget::new(start);
        for _ in 0..FRAMES_PER_SECOND - 1 {
            assert_eq!(budget.spend(at(10)), None);
        }
        assert_eq!(budget.spend(at(400)), Some(Duration::from_millis(600)));
        assert_eq!(budget.spend(at(1000)), None);
        for _ in 0..FRAMES_PER_SECOND - 2 {
            assert_eq!(budget.spend(at(1500)), None);
        }
        assert_eq!(budget.spend(at(1500)), Some(Duration::from_millis(500)));
    }
}
