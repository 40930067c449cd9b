//! The serial port: vm-superio's 16550 on our bus.
//!
//! vCPU threads run the registers; the control loop pushes input, as much as there is room for, and is told by an
//! eventfd when a guest that was full has read on.

mod state;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_superio::Trigger;
use vm_superio::serial::{Serial as Uart, SerialEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::state::{SerialRestoreError, SerialState};
use super::console::ConsoleWriter;
use crate::bus::BusDevice;

const MODEM_CONTROL: u8 = 4;
const MODEM_CONTROL_LOOP: u8 = 1 << 4;
const REGISTERS: u64 = 8;

/// Why a serial port cannot be made.
#[derive(Debug, Error)]
pub enum SerialError {
    /// No descriptor is left for its events.
    #[error("cannot create an eventfd for the serial port")]
    EventFd(#[source] io::Error),
}

/// A 16550 at eight consecutive ports.
pub struct Serial {
    uart: Uart<Line, Events, ConsoleWriter>,
    room: Arc<Room>,
}

/// The interrupt: rising edge by eventfd.
struct Line(EventFd);

/// What the owner of the input waits for.
struct Room {
    /// Input was left over at the last push.
    wanted: AtomicBool,
    event: EventFd,
}

struct Events(Arc<Room>);

impl Serial {
    /// A serial port that writes to `output`.
    ///
    /// # Errors
    /// [`SerialError::EventFd`].
    pub fn new(output: ConsoleWriter) -> Result<Self, SerialError> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SerialError::EventFd);
        let room = Arc::new(Room { wanted: AtomicBool::new(false), event: eventfd()? });
        let uart = Uart::with_events(Line(eventfd()?), Events(Arc::clone(&room)), output);
        Ok(Self { uart, room })
    }

    /// The interrupt line, to be bound to the port's GSI.
    pub fn interrupt_line(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }

    /// Becomes readable when a guest that had no room has read its input. The reader takes the count off.
    pub fn room_event(&self) -> &EventFd {
        &self.room.event
    }

    /// How many bytes of input the guest's FIFO takes now. With 0 a [`Self::room_event`] follows.
    pub fn room(&mut self) -> usize {
        let looped = self.uart.read(MODEM_CONTROL) & MODEM_CONTROL_LOOP != 0;
        let room = if looped { 0 } else { self.uart.fifo_capacity() };
        if room == 0 {
            self.room.wanted.store(true, Ordering::Relaxed);
        }
        room
    }

    /// Gives input to the guest and interrupts it. Returns how many bytes were taken; if not all, a
    /// [`Self::room_event`] follows.
    pub fn push(&mut self, input: &[u8]) -> usize {
        let room = self.room();
        let taken = input.len().min(room);
        if taken > 0 {
            let pushed = self.uart.enqueue_raw_bytes(&input[..taken]);
            debug_assert!(pushed.is_ok_and(|count| count == taken), "room() said so");
        }
        if taken < input.len() {
            self.room.wanted.store(true, Ordering::Relaxed);
        }
        taken
    }
}

impl BusDevice for Serial {
    /// The registers are bytes: a wider access gets ones, as on a bus where nobody drives the other lanes.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Some(register)) = (data, register(offset)) {
            *byte = self.uart.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Some(register)) = (data, register(offset)) {
            // Neither the console nor an eventfd that nobody overfills fails.
            let _infallible = self.uart.write(register, *byte);
            if register == MODEM_CONTROL {
                self.room.offer();
            }
        }
    }
}

impl Room {
    fn offer(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            // Fails only when 2^64 - 2 events are unread, and then the reader has its event.
            let _unread = self.event.write(1);
        }
    }
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialEvents for Events {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.offer();
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|_| offset < REGISTERS)
}

#[cfg(test)]
mod tests {
    use super::super::ConsoleOutput;
    use super::*;
    use crate::state::SaveState;
    use proptest::prelude::*;
    use std::io::{PipeReader, Read};

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const SCRATCH: u64 = 7;
    const DATA_READY: u8 = 1;

    fn serial() -> (Serial, ConsoleOutput, PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let output = ConsoleOutput::new("test-console", writer.into());
        (Serial::new(output.writer()).unwrap(), output, reader)
    }

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut data = [0xff];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_writes_comes_out() {
        let (mut serial, _output, mut reader) = serial();
        for byte in b"husk\n" {
            serial.write(DATA, &[*byte]);
        }
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"husk\n");
    }

    #[test]
    fn input_interrupts_and_is_read_back_in_order() {
        let (mut serial, _output, _reader) = serial();
        serial.write(INTERRUPT_ENABLE, &[1]);
        assert!(serial.interrupt_line().read().is_err());
        assert_eq!(serial.push(b"abc"), 3);
        assert_eq!(serial.interrupt_line().read().unwrap(), 1);
        for byte in b"abc" {
            assert_eq!(read(&mut serial, LINE_STATUS) & DATA_READY, DATA_READY);
            assert_eq!(read(&mut serial, DATA), *byte);
        }
        assert_eq!(read(&mut serial, LINE_STATUS) & DATA_READY, 0);
    }

    #[test]
    fn a_full_fifo_takes_no_more_and_says_when_it_was_read() {
        let (mut serial, _output, _reader) = serial();
        let room = serial.room();
        assert_eq!(serial.push(&vec![1; room + 5]), room);
        assert_eq!((serial.room(), serial.push(b"x")), (0, 0));
        assert!(serial.room_event().read().is_err());
        for _ in 0..room {
            assert_eq!(read(&mut serial, DATA), 1);
        }
        assert_eq!(serial.room_event().read().unwrap(), 1);
        assert_eq!(serial.room(), room);
    }

    #[test]
    fn a_guest_that_polls_an_empty_port_wakes_nobody() {
        let (mut serial, _output, _reader) = serial();
        for _ in 0..1000 {
            read(&mut serial, DATA);
        }
        assert!(serial.room_event().read().is_err());
    }

    #[test]
    fn in_loopback_input_waits_and_nothing_comes_out() {
        let (mut serial, output, _reader) = serial();
        serial.write(u64::from(MODEM_CONTROL), &[MODEM_CONTROL_LOOP]);
        assert_eq!(serial.push(b"abc"), 0);
        serial.write(DATA, &[0x5a]);
        assert_eq!(read(&mut serial, DATA), 0x5a);
        serial.write(u64::from(MODEM_CONTROL), &[0]);
        assert!(serial.room_event().read().is_ok());
        assert_eq!(serial.push(b"abc"), 3);
        assert_eq!(output.counters().written_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn wide_and_foreign_accesses_are_ignored() {
        let (mut serial, _output, _reader) = serial();
        let mut wide = [0xff; 4];
        serial.read(DATA, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        serial.write(DATA, &[1, 2]);
        serial.write(8, &[1]);
        assert_eq!(read(&mut serial, 8), 0xff);
    }

    #[test]
    fn input_that_was_not_read_is_read_from_the_port_that_was_restored() {
        let (mut first, _output, _reader) = serial();
        first.write(INTERRUPT_ENABLE, &[1]);
        first.write(SCRATCH, &[0x5a]);
        first.push(b"abc");
        assert_eq!(read(&mut first, DATA), b'a');
        let (mut heir, _output, mut out) = serial();
        let line = heir.interrupt_line().try_clone().unwrap();
        heir.restore(first.save()).unwrap();
        assert_eq!(heir.save(), first.save());
        assert_eq!(heir.push(b"d"), 1);
        assert_eq!([DATA; 3].map(|at| read(&mut heir, at)), *b"bcd");
        assert_eq!(read(&mut heir, SCRATCH), 0x5a);
        heir.write(DATA, b"!");
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!", "it writes where the new one did");
        heir.push(b"e");
        assert!(line.read().is_ok(), "and interrupts there");
    }

    #[test]
    fn an_interrupt_that_the_guest_has_not_answered_is_raised_again() {
        let (mut first, _output, _reader) = serial();
        first.write(INTERRUPT_ENABLE, &[1]);
        first.push(b"a");
        let (mut heir, _output, _reader) = serial();
        heir.restore(first.save()).unwrap();
        assert_eq!(heir.interrupt_line().read().unwrap(), 1);
    }

    #[test]
    fn a_full_port_that_was_restored_says_when_it_was_read() {
        let (mut first, _output, _reader) = serial();
        let room = first.room();
        first.push(&vec![7; room]);
        let (mut heir, _output, _reader) = serial();
        heir.restore(first.save()).unwrap();
        assert_eq!(heir.room(), 0);
        while read(&mut heir, LINE_STATUS) & DATA_READY != 0 {
            read(&mut heir, DATA);
        }
        assert_eq!(heir.room_event().read().unwrap(), 1);
    }

    #[test]
    fn registers_and_input_that_no_port_has_are_refused() {
        let (mut serial, _output, _reader) = serial();
        let good = serial.save();
        let cases: [fn(&mut SerialState); 6] = [
            |state| state.input = vec![0; 65],
            |state| state.input = vec![0],
            |state| state.line_status = 0,
            |state| state.line_status |= DATA_READY,
            |state| state.interrupt_enable = 0x10,
            |state| state.interrupt_identification = 0,
        ];
        for (number, change) in cases.into_iter().enumerate() {
            let mut state = good.clone();
            change(&mut state);
            assert!(serial.restore(state).is_err(), "case {number}");
        }
        let too_much = SerialState { input: vec![0; 65], line_status: 0x61, ..good };
        let error = serial.restore(too_much).unwrap_err().to_string();
        assert_eq!(error, "65 bytes of input are more than a serial port's FIFO takes");
    }

    proptest! {
        /// Wherever a guest leaves its port, another one takes it over.
        #[test]
        fn every_state_that_a_guest_gets_to_is_restored(
            accesses in prop::collection::vec((any::<bool>(), 0..9_u64, any::<u8>()), 0..60),
        ) {
            let (mut first, _output, _reader) = serial();
            for (write, offset, value) in accesses {
                match (write, offset) {
                    (_, 8) => {
                        first.push(&[value; 5]);
                    }
                    (true, _) => first.write(offset, &[value]),
                    (false, _) => {
                        read(&mut first, offset);
                    }
                }
            }
            let (mut heir, _output, _reader) = serial();
            let bytes = postcard::to_allocvec(&first.save()).unwrap();
            heir.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
            prop_assert_eq!(heir.save(), first.save());
        }
    }
}
