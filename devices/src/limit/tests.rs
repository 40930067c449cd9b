use super::*;

fn ops(per_second: u64) -> LimiterConfig {
    let total = Limits { operations: Rate::per_second(per_second), bytes: None };
    LimiterConfig { total, ..LimiterConfig::default() }
}

/// Was the member told to ask again?
fn nudged(member: &Member) -> bool {
    member.wake.read().is_ok()
}

#[test]
fn without_limits_everything_is_granted() {
    let limiter = Limiter::new(LimiterConfig::default());
    let member = limiter.join().unwrap();
    for _ in 0..1000 {
        assert_eq!(member.admit(Flow::Out, u64::MAX), Admission::Granted);
    }
    assert!(LimiterConfig::default().is_unlimited() && !ops(1).is_unlimited());
}

#[test]
fn a_refused_request_takes_nothing_from_any_bucket() {
    let total = Limits { operations: Rate::per_second(100), bytes: Rate::new(1000, 0, 3_600_000) };
    let limiter = Limiter::new(LimiterConfig { total, ..LimiterConfig::default() });
    let member = limiter.join().unwrap();
    assert_eq!(member.admit(Flow::In, 1000), Admission::Granted);
    for _ in 0..1000 {
        assert!(matches!(member.admit(Flow::In, 1000), Admission::After(_)));
    }
    for _ in 0..99 {
        assert_eq!(member.admit(Flow::In, 0), Admission::Granted, "operations are left");
    }
}

#[test]
fn the_flows_have_limits_apart_from_the_sum() {
    let hourly = |size| Limits { operations: Rate::new(size, 0, 3_600_000), bytes: None };
    let limiter = Limiter::new(LimiterConfig { total: hourly(5), inward: hourly(2), outward: hourly(4) });
    let member = limiter.join().unwrap();
    let granted = |flow| {
        let granted = member.admit(flow, 1) == Admission::Granted;
        member.give_up();
        granted
    };
    assert_eq!([granted(Flow::In), granted(Flow::In), granted(Flow::In)], [true, true, false]);
    assert_eq!(
        [granted(Flow::Out), granted(Flow::Out), granted(Flow::Out), granted(Flow::Out)],
        [true, true, true, false]
    );
}

#[test]
fn a_group_is_served_in_the_order_of_waiting() {
    let hourly = |operations| {
        let total = Limits { operations: Rate::new(operations, 0, 3_600_000), bytes: None };
        LimiterConfig { total, ..LimiterConfig::default() }
    };
    let limiter = Limiter::new(hourly(1));
    let (one, two, three) = (limiter.join().unwrap(), limiter.join().unwrap(), limiter.join().unwrap());
    assert_eq!(one.admit(Flow::In, 0), Admission::Granted);
    assert!(matches!(two.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!(three.admit(Flow::In, 0), Admission::InLine);
    assert_eq!(one.admit(Flow::In, 0), Admission::InLine);
    // New limits: all are told, and stay in line.
    limiter.change(hourly(2));
    assert_eq!([nudged(&one), nudged(&two), nudged(&three)], [true; 3]);
    assert_eq!(one.admit(Flow::In, 0), Admission::InLine, "not before the others");
    assert_eq!(two.admit(Flow::In, 0), Admission::Granted);
    assert_eq!([nudged(&one), nudged(&three)], [false, true]);
    assert_eq!(three.admit(Flow::In, 0), Admission::Granted);
    assert!(nudged(&one));
    assert!(matches!(one.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!(two.admit(Flow::In, 0), Admission::InLine);
    // Who leaves lets the next one ask.
    drop(one);
    assert!(nudged(&two));
}

#[test]
fn a_flow_that_waits_for_its_own_limit_does_not_hold_up_the_other() {
    let hourly = |size| Limits { operations: Rate::new(size, 0, 3_600_000), bytes: None };
    let limiter = Limiter::new(LimiterConfig { inward: hourly(1), total: hourly(4), ..LimiterConfig::default() });
    let (receive, transmit) = (limiter.join().unwrap(), limiter.join().unwrap());
    assert_eq!(receive.admit(Flow::In, 0), Admission::Granted);
    assert!(matches!(receive.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!([(); 3].map(|()| transmit.admit(Flow::Out, 0)), [Admission::Granted; 3]);
    // What both need is another matter: who lacks that holds up everybody behind it.
    assert!(matches!(receive.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!(transmit.admit(Flow::Out, 0), Admission::InLine);
    drop(receive);
    assert!(nudged(&transmit));
}

#[test]
fn what_cannot_wait_goes_once_on_credit_and_is_paid_for_afterwards() {
    let hourly = |size| Limits { operations: Rate::new(size, 0, 3_600_000), bytes: None };
    let limiter = Limiter::new(LimiterConfig { inward: hourly(1), ..LimiterConfig::default() });
    let (member, other) = (limiter.join().unwrap(), limiter.join().unwrap());
    assert_eq!(member.admit(Flow::In, 0), Admission::Granted);
    assert!(matches!(member.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!(other.admit(Flow::In, 0), Admission::InLine);
    assert!(member.borrow(Flow::In, 0));
    assert!(nudged(&other), "who borrows leaves the line");
    let Admission::After(wait) = other.admit(Flow::In, 0) else { panic!("nothing is left") };
    assert!(wait > Duration::from_secs(3600), "{wait:?}: what was borrowed is paid for first");
    assert!(!member.borrow(Flow::In, 0) && !other.borrow(Flow::In, 0), "a debt is not doubled");
    assert!(member.borrow(Flow::Out, 0), "the other flow owes nothing");
}

#[test]
fn what_did_not_happen_costs_nothing() {
    let total = Limits { operations: Rate::new(2, 0, 3_600_000), bytes: Rate::new(100, 0, 3_600_000) };
    let limiter = Limiter::new(LimiterConfig { total, ..LimiterConfig::default() });
    let member = limiter.join().unwrap();
    for _ in 0..5 {
        assert_eq!(member.admit(Flow::Out, 100), Admission::Granted);
        member.give_back(Flow::Out, 100);
    }
    // More than was ever taken fills no bucket beyond its size.
    member.give_back(Flow::Out, u64::MAX);
    assert_eq!([(); 2].map(|()| member.admit(Flow::Out, 50)), [Admission::Granted; 2]);
    assert!(matches!(member.admit(Flow::Out, 0), Admission::After(_)));
}

#[test]
fn without_limits_all_who_wait_are_told_at_once() {
    let total = Limits { operations: Rate::new(1, 0, 3_600_000), bytes: None };
    let limiter = Limiter::new(LimiterConfig { total, ..LimiterConfig::default() });
    let (one, two) = (limiter.join().unwrap(), limiter.join().unwrap());
    assert_eq!(one.admit(Flow::In, 0), Admission::Granted);
    assert!(matches!(one.admit(Flow::In, 0), Admission::After(_)));
    assert_eq!(two.admit(Flow::In, 0), Admission::InLine);
    limiter.change(LimiterConfig::default());
    assert_eq!([nudged(&one), nudged(&two)], [true, true]);
    assert_eq!([one.admit(Flow::In, 0), two.admit(Flow::In, 0)], [Admission::Granted; 2]);
}
