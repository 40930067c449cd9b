use super::*;
use crate::state::SaveState;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

fn controller() -> (I8042, Receiver<MachineRequest>) {
    let (sender, receiver) = channel();
    (I8042::new(Arc::new(move |request| sender.send(request).unwrap())).unwrap(), receiver)
}

fn read(controller: &mut I8042, offset: u64) -> u8 {
    let mut data = [0xff];
    controller.read(offset, &mut data);
    data[0]
}

#[test]
fn the_reset_pulse_asks_for_a_reset() {
    let (mut controller, requests) = controller();
    // Linux: waits for an empty input buffer, then pulses.
    assert_eq!(read(&mut controller, COMMAND) & 0x02, 0);
    assert!(requests.try_recv().is_err());
    controller.write(COMMAND, &[0xfe]);
    assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset));
}

#[test]
fn pulling_the_reset_line_through_the_output_port_asks_for_a_reset() {
    let (mut controller, requests) = controller();
    controller.write(COMMAND, &[WRITE_OUTPUT_PORT]);
    controller.write(DATA, &[0x03]);
    assert!(requests.try_recv().is_err());
    controller.write(COMMAND, &[WRITE_OUTPUT_PORT]);
    controller.write(DATA, &[0x02]);
    assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset));
}

#[test]
fn the_controller_answers_its_own_commands() {
    let (mut controller, _requests) = controller();
    controller.write(COMMAND, &[SELF_TEST]);
    assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
    assert_eq!(read(&mut controller, DATA), SELF_TEST_PASSED);
    assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
    controller.write(COMMAND, &[WRITE_CONTROL]);
    controller.write(DATA, &[0x47]);
    controller.write(COMMAND, &[READ_CONTROL]);
    assert_eq!(read(&mut controller, DATA), 0x47);
}

/// As Linux leaves the controller: keyboard and interrupt on, translation on.
fn enabled(control: u8) -> (I8042, Receiver<MachineRequest>) {
    let (mut controller, requests) = controller();
    controller.write(COMMAND, &[WRITE_CONTROL]);
    controller.write(DATA, &[control]);
    (controller, requests)
}

/// Reads all that waits, as an interrupt handler does.
fn drain(controller: &mut I8042) -> Vec<u8> {
    let mut bytes = Vec::new();
    while read(controller, COMMAND) & STATUS_OUTPUT_FULL != 0 {
        bytes.push(read(controller, DATA));
    }
    bytes
}

fn ask(controller: &mut I8042, bytes: &[u8]) -> Vec<u8> {
    bytes.iter().for_each(|byte| controller.write(DATA, &[*byte]));
    drain(controller)
}

#[test]
fn the_keyboard_answers_what_linux_asks_of_it() {
    let (mut plain, _requests) = enabled(CONTROL_INTERRUPT);
    let (mut translated, _requests) = enabled(CONTROL_INTERRUPT | CONTROL_TRANSLATE);
    assert_eq!(ask(&mut plain, &[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(ask(&mut translated, &[0xf2]), [0xfa, 0xab, 0x41]);
    assert_eq!(ask(&mut plain, &[0xf0, 0]), [0xfa, 0xfa, 2]);
    assert_eq!(ask(&mut plain, &[0xff]), [0xfa, 0xaa]);
    for with_parameter in [0xed, 0xf0, 0xf3] {
        // A parameter is none of the commands, whatever its value.
        assert_eq!(ask(&mut plain, &[with_parameter, 0xff]), [0xfa, 0xfa]);
    }
    for alone in [0xf4, 0xf5, 0xf6] {
        assert_eq!(ask(&mut plain, &[alone]), [0xfa]);
    }
    assert_eq!((ask(&mut plain, &[0xee]), ask(&mut plain, &[0xfe])), (vec![0xee], vec![0xee]));
    assert_eq!(ask(&mut plain, &[0xe1]), [0xfe], "a command that no keyboard has");
}

#[test]
fn ctrl_alt_del_is_made_and_broken_in_the_code_that_the_guest_chose() {
    let (mut controller, _requests) = enabled(CONTROL_INTERRUPT | CONTROL_TRANSLATE);
    controller.press_ctrl_alt_del();
    assert_eq!(drain(&mut controller), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    let (mut controller, _requests) = enabled(CONTROL_INTERRUPT);
    controller.press_ctrl_alt_del();
    assert_eq!(drain(&mut controller), [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14]);
}

#[test]
fn each_byte_interrupts_once_and_only_if_the_guest_asks_for_it() {
    let (mut controller, _requests) = enabled(CONTROL_TRANSLATE);
    controller.press_ctrl_alt_del();
    assert!(controller.interrupt_line().read().is_err());
    controller.write(COMMAND, &[WRITE_CONTROL]);
    controller.write(DATA, &[CONTROL_TRANSLATE | CONTROL_INTERRUPT]);
    for left in (0..8).rev() {
        assert_eq!(controller.interrupt_line().read().unwrap(), 1);
        read(&mut controller, COMMAND);
        assert!(controller.interrupt_line().read().is_err());
        read(&mut controller, DATA);
        assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL != 0, left > 0);
    }
    assert!(controller.interrupt_line().read().is_err());
}

#[test]
fn keys_are_lost_while_the_keyboard_is_off_or_does_not_scan_or_is_full() {
    let (mut controller, _requests) = controller();
    controller.press_ctrl_alt_del();
    controller.write(COMMAND, &[ENABLE_KEYBOARD]);
    assert_eq!(drain(&mut controller), []);
    assert_eq!(ask(&mut controller, &[0xf5]), [0xfa]);
    controller.press_ctrl_alt_del();
    assert_eq!(drain(&mut controller), []);
    assert_eq!(ask(&mut controller, &[0xf4]), [0xfa]);
    controller.press_ctrl_alt_del();
    controller.press_ctrl_alt_del();
    assert_eq!(drain(&mut controller).len(), 11, "the second time does not fit as a whole");
}

#[test]
fn what_a_guest_does_not_read_takes_no_more_than_sixteen_bytes() {
    let (mut controller, _requests) = enabled(CONTROL_INTERRUPT);
    assert_eq!(ask(&mut controller, &[0xf2; 1000]).len(), 16);
}

#[test]
fn the_controllers_answer_comes_before_the_keyboards_bytes_and_while_it_is_off() {
    let (mut controller, _requests) = enabled(CONTROL_INTERRUPT | CONTROL_TRANSLATE);
    controller.write(DATA, &[0xf2]);
    controller.write(COMMAND, &[DISABLE_KEYBOARD]);
    assert_eq!(drain(&mut controller), []);
    controller.write(COMMAND, &[READ_CONTROL]);
    assert_eq!(drain(&mut controller), [CONTROL_INTERRUPT | CONTROL_TRANSLATE | CONTROL_KEYBOARD_OFF]);
    controller.write(COMMAND, &[ENABLE_KEYBOARD]);
    assert_eq!(drain(&mut controller), [0xfa, 0xab, 0x41]);
}

#[test]
fn a_byte_to_the_auxiliary_port_reaches_no_keyboard() {
    let (mut controller, requests) = enabled(0);
    controller.write(COMMAND, &[WRITE_AUX]);
    assert_eq!(ask(&mut controller, &[0xff]), []);
    controller.write(COMMAND, &[WRITE_AUX_OUTPUT]);
    assert_eq!(ask(&mut controller, &[0x5a]), [0x5a]);
    assert!(requests.try_recv().is_err());
}

#[test]
fn what_a_guest_was_told_and_has_not_read_is_read_from_the_controller_that_was_restored() {
    let (mut first, _requests) = controller();
    first.write(COMMAND, &[WRITE_CONTROL]);
    first.write(DATA, &[CONTROL_INTERRUPT | CONTROL_TRANSLATE]);
    first.press_ctrl_alt_del();
    assert_eq!(read(&mut first, DATA), 0x1d);
    first.write(COMMAND, &[READ_CONTROL]);
    first.write(COMMAND, &[WRITE_OUTPUT_PORT]);
    let (mut heir, requests) = controller();
    let state = first.save();
    heir.restore(state.clone()).unwrap();
    assert_eq!(heir.save(), state);
    assert_eq!(heir.interrupt_line().read().unwrap(), 1, "the byte that waits interrupts again");
    let bytes = [DATA; 8].map(|at| read(&mut heir, at));
    assert_eq!(bytes, [CONTROL_INTERRUPT | CONTROL_TRANSLATE, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    heir.write(DATA, &[0x02]);
    assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset), "the parameter that was waited for");
}

#[test]
fn a_controller_without_a_byte_to_read_does_not_interrupt() {
    let (first, _requests) = controller();
    let (mut heir, _requests) = controller();
    heir.restore(first.save()).unwrap();
    assert!(heir.interrupt_line().read().is_err());
}

#[test]
fn what_no_controller_comes_to_is_refused() {
    let (mut controller, _requests) = controller();
    let good = controller.save();
    let mut full = good.clone();
    full.keyboard.output = vec![0; 17];
    let refusal = controller.restore(full).unwrap_err().to_string();
    assert_eq!(refusal, "17 bytes are more than the 16 that a keyboard holds back");
    for command in [PULSE_RESET, 0, SELF_TEST] {
        let state = I8042State { awaiting: Some(command), ..good.clone() };
        assert_eq!(controller.restore(state), Err(I8042RestoreError::Command(command)));
        let mut state = good.clone();
        state.keyboard.awaiting = Some(command);
        assert_eq!(controller.restore(state), Err(I8042RestoreError::Command(command)));
    }
}

proptest! {
    /// Wherever a guest leaves its controller, another one takes it over and goes on as the first.
    #[test]
    fn every_state_that_a_guest_gets_to_is_restored(
        accesses in prop::collection::vec((0..4_u8, any::<u8>()), 0..60),
        later in prop::collection::vec((0..4_u8, any::<u8>()), 0..20),
    ) {
        let access = |controller: &mut I8042, kind, value: u8| match kind {
            0 => read(controller, DATA),
            1 => {
                controller.write(DATA, &[value]);
                0
            }
            2 => {
                controller.write(COMMAND, &[value]);
                read(controller, COMMAND)
            }
            _ => {
                controller.press_ctrl_alt_del();
                0
            }
        };
        let (mut first, _requests) = controller();
        for (kind, value) in accesses {
            access(&mut first, kind, value);
        }
        let (mut heir, _their_requests) = controller();
        let bytes = postcard::to_allocvec(&first.save()).unwrap();
        heir.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
        prop_assert_eq!(heir.save(), first.save());
        for (kind, value) in later {
            prop_assert_eq!(access(&mut heir, kind, value), access(&mut first, kind, value));
        }
    }
}
