//! Who waits is woken when there is room, and only then.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod lab;

use lab::{Lab, creates, instance, key, machine, reason};
use paddock_operator::{cache::Origin, queue::Work};

/// Plans for a machine and applies it, until it has nothing to do.
fn settle(lab: &Lab, name: &str) {
    for _ in 0..4 {
        let planned = lab.plan(name);
        lab.apply(name, &planned);
    }
    assert_eq!(lab.plan(name).plan.actions, []);
}

#[tokio::test]
async fn what_a_running_machine_gives_up_wakes_those_who_wait() {
    let lab = Lab::new("500Mi").await;
    lab.change("a", "200Mi", 1);
    settle(&lab, "a");
    lab.restart("a");
    lab.change("b", "200Mi", 1);
    assert_eq!(reason(&lab.plan("b")), "Unschedulable");
    lab.drain().await;
    // The guest has its memory until it is started anew: nothing is free yet.
    lab.change("a", "40Mi", 1);
    settle(&lab, "a");
    lab.plan("b");
    lab.drain().await;
    lab.restart("a");
    assert_eq!(lab.drain().await, [Work::Machine(key("a"))]);
    settle(&lab, "a");
    assert!(lab.drain().await.contains(&Work::Machine(key("b"))));
    assert!(creates(&lab.plan("b")).is_some());
    lab.drain().await;
    // An adapter's addresses, too.
    lab.cache
        .observe(machine("big", "8Gi", None), Origin::Watch);
    assert_eq!(reason(&lab.plan("big")), "Unschedulable");
    lab.drain().await;
    let planned = {
        let mut spec = lab
            .cache
            .world()
            .instances
            .get(&key("a"))
            .cloned()
            .unwrap()
            .spec
            .clone();
        spec.config.network_adapters.clear();
        spec
    };
    lab.cache.observe(instance("a", planned), Origin::Own);
    assert!(lab.drain().await.contains(&Work::Machine(key("big"))));
}

#[tokio::test]
async fn a_plan_that_takes_less_frees_the_rest() {
    let lab = Lab::new("500Mi").await;
    lab.cache
        .observe(machine("a", "300Mi", None), Origin::Watch);
    let first = lab.plan("a");
    assert!(creates(&first).is_some() && !first.frees);
    // Nothing was created: the machine is to have less.
    lab.change("a", "64Mi", 1);
    assert!(lab.plan("a").frees);
    assert!(!lab.plan("a").frees);
    // What the API shows takes over what was planned.
    let planned = lab.plan("a");
    lab.apply("a", &planned);
    assert!(!lab.plan("a").frees);
}
