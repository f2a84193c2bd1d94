//! Hosts that take a disk from each other, and crash.

use uuid::Uuid;

use super::{Change, Damaged, LEN, LockOwner, Record, STRIDE, admit, read, release, take};
use crate::image::random::Random;

fn boot(number: u8) -> Uuid {
    Uuid::from_bytes([number; 16])
}

fn owner(disk_epoch: u64, host: &str, boot_id: u8) -> LockOwner {
    LockOwner::new(disk_epoch, host, boot(boot_id)).unwrap()
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    let at = change.offset as usize;
    file.resize(file.len().max(at + 512), 0);
    file[at..at + 512].copy_from_slice(&change.bytes);
}

fn held_by(owner: &LockOwner) -> Vec<u8> {
    let mut file = Vec::new();
    for change in take(None, owner) {
        apply(&mut file, &change);
    }
    file
}

fn record(file: &[u8]) -> Option<Record> {
    read(file).unwrap()
}

/// Whether `opener` gets in where the file says `record`, on boot 1.
fn gets_in(record: &Option<Record>, opener: Option<&LockOwner>) -> bool {
    admit(record.as_ref(), opener, Some(boot(1))).is_ok()
}

#[test]
fn who_gets_in() {
    let none = None;
    assert!(gets_in(&none, None));
    assert!(gets_in(&none, Some(&owner(0, "a", 1))));
    let held = record(&held_by(&owner(5, "a", 2)));
    for (opener, expected) in [
        (owner(4, "a", 2), false),
        (owner(5, "a", 2), true),
        // After a crash of the host.
        (owner(4, "a", 3), false),
        (owner(5, "a", 3), true),
        (owner(6, "a", 3), true),
        (owner(4, "b", 4), false),
        (owner(5, "b", 4), false),
        (owner(6, "b", 4), true),
        // Who is named like it on the same boot is it.
        (owner(5, "b", 2), false),
    ] {
        assert_eq!(gets_in(&held, Some(&opener)), expected, "{opener:?}");
    }
    // Without an owner: only who knows that the holder is dead.
    assert!(!gets_in(&held, None));
    assert!(gets_in(&record(&held_by(&owner(5, "a", 1))), None));
    let mut file = held_by(&owner(5, "a", 2));
    let change = release(held.as_ref(), &owner(5, "a", 2)).unwrap();
    apply(&mut file, &change);
    let released = record(&file);
    let expected = Some((5, None));
    let found = released.as_ref().map(|r| (r.disk_epoch, r.holder.clone()));
    assert_eq!(found, expected);
    assert!(gets_in(&released, None));
    assert!(gets_in(&released, Some(&owner(5, "b", 4))));
    assert!(!gets_in(&released, Some(&owner(4, "a", 2))));
}

#[test]
fn a_refusal_names_the_host_and_the_epoch() {
    let held = record(&held_by(&owner(5, "node-a", 2)));
    for opener in [None, Some(owner(5, "b", 3)), Some(owner(4, "b", 3))] {
        let why = admit(held.as_ref(), opener.as_ref(), None).unwrap_err();
        assert!(
            why.contains("host node-a") && why.contains("epoch 5"),
            "{why}"
        );
    }
}

#[test]
fn only_the_holder_releases_it() {
    let file = held_by(&owner(5, "a", 2));
    let held = record(&file);
    for other in [owner(6, "a", 2), owner(5, "b", 2), owner(5, "a", 3)] {
        assert_eq!(release(held.as_ref(), &other), None, "{other:?}");
    }
    assert_eq!(release(None, &owner(5, "a", 2)), None);
    // Nothing is written for who has it already.
    assert_eq!(take(held.as_ref(), &owner(5, "a", 2)), []);
}

#[test]
fn names_of_hosts_are_checked() {
    for host in ["", "a b", "a\n", "\u{e4}", "a\0", &"x".repeat(254)] {
        assert!(LockOwner::new(1, host, boot(1)).is_err(), "{host:?}");
    }
    let longest = LockOwner::new(u64::MAX, "x".repeat(253), boot(9)).unwrap();
    let held = record(&held_by(&longest)).unwrap();
    assert!(held.names(&longest));
    assert_eq!(held.disk_epoch, u64::MAX);
}

#[test]
fn a_sector_that_cannot_be_believed_is_not() {
    let file = held_by(&owner(5, "a", 2));
    // The second change is in the first slot.
    assert_eq!(file.len(), LEN);
    for bit in 0..512 * 8 {
        let mut torn = file.clone();
        torn[bit / 8] ^= 1 << (bit % 8);
        // As if the change had not been: the one before is there.
        let before = record(&torn).unwrap();
        assert_eq!((before.disk_epoch, before.holder), (0, None), "bit {bit}");
        torn[STRIDE..].fill(7);
        assert_eq!(read(&torn), Err(Damaged));
        torn.truncate(512);
        assert_eq!(read(&torn), Err(Damaged));
    }
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[0; 100]), Ok(None));
    assert_eq!(read(&[7; 100]), Err(Damaged));
    let mut random = Random::new(1);
    for _ in 0..200 {
        let len = random.below(2 * LEN as u64);
        let _ = read(&random.bytes(len));
    }
}

/// A host: its boot, and the epoch in which it has the disk open.
#[derive(Default)]
struct Host {
    boots: u8,
    open: Option<u64>,
}

/// Who attaches disks fences the host of the attachment before it makes
/// another one. Hosts know nothing of each other's kernel locks. Old epochs
/// are tried again, writes are torn, hosts crash.
#[test]
fn nobody_gets_in_beside_a_holder_that_was_not_fenced() {
    let (mut opened, mut refused, mut torn) = (0, 0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut file = Vec::new();
        let mut hosts: [Host; 3] = Default::default();
        let names = ["a", "b", "c"];
        // Attachments so far: epochs count from 1, and the last one is valid.
        let mut attached: Vec<usize> = Vec::new();
        let mut highest = 0;
        for _ in 0..60 {
            let index = random.below(3) as usize;
            let me = |hosts: &[Host; 3], epoch| {
                let number = 10 * (index as u8 + 1) + hosts[index].boots % 10;
                owner(epoch, names[index], number)
            };
            match random.below(8) {
                // Fenced, whoever has it, and attached to this host.
                0 | 1 => {
                    if let Some(&last) = attached.last() {
                        hosts[last].open = None;
                    }
                    attached.push(index);
                }
                2 => {
                    hosts[index].open = None;
                    hosts[index].boots += 1;
                }
                3 => {
                    if let Some(epoch) = hosts[index].open.take() {
                        let found = record(&file);
                        let me = me(&hosts, epoch);
                        let change = release(found.as_ref(), &me).expect("it is the holder");
                        apply(&mut file, &change);
                    }
                }
                // Somebody without an owner, on this host.
                4 => {
                    let found = record(&file);
                    let boot_id = me(&hosts, 0).boot_id();
                    let got_in = admit(found.as_ref(), None, Some(boot_id)).is_ok();
                    let alive = (0..3).any(|other| other != index && hosts[other].open.is_some());
                    assert!(!(got_in && alive), "seed {seed}");
                }
                _ => {
                    // The valid attachment; or one that another has come
                    // after, or another host's that has the disk. (An old one
                    // that nobody came after is not told from a valid one:
                    // that is what fencing is for.)
                    let last = attached.len() as u64;
                    let epoch = match random.below(3) {
                        0 if highest > 0 => random.below(highest),
                        1 if highest > 0
                            && attached[highest as usize - 1] != index
                            && record(&file).unwrap().holder.is_some() =>
                        {
                            highest
                        }
                        _ if last > 0 && attached[last as usize - 1] == index => last,
                        _ => continue,
                    };
                    // The kernel's lock on this host.
                    if hosts[index].open.is_some() {
                        continue;
                    }
                    let found = record(&file);
                    let me = me(&hosts, epoch);
                    if admit(found.as_ref(), Some(&me), Some(me.boot_id())).is_err() {
                        refused += 1;
                        continue;
                    }
                    let other =
                        (0..3).find(|other| *other != index && hosts[*other].open.is_some());
                    assert_eq!(other, None, "seed {seed}: {me} gets in as well");
                    assert!(epoch >= highest, "seed {seed}: {me} comes back");
                    let changes = take(found.as_ref(), &me);
                    let tear =
                        (random.below(4) == 0).then(|| random.below(changes.len() as u64 + 1));
                    for (number, change) in (0u64..).zip(&changes) {
                        if tear == Some(number) {
                            let mut half = change.clone();
                            let cut = random.below(512) as usize;
                            let at = change.offset as usize;
                            let old = file.get(at..at + 512).map(<[u8]>::to_vec);
                            half.bytes[cut..]
                                .copy_from_slice(&old.unwrap_or_else(|| vec![0; 512])[cut..]);
                            apply(&mut file, &half);
                            break;
                        }
                        apply(&mut file, change);
                    }
                    if tear.is_some_and(|tear| tear < changes.len() as u64) {
                        // The host crashed, and never had it.
                        torn += 1;
                        hosts[index].boots += 1;
                        read(&file).expect("a torn change is no damage");
                        continue;
                    }
                    assert!(record(&file).unwrap().names(&me));
                    highest = epoch;
                    hosts[index].open = Some(epoch);
                    opened += 1;
                }
            }
        }
    }
    assert!(
        opened > 600 && refused > 500 && torn > 100,
        "{opened} {refused} {torn}"
    );
}
