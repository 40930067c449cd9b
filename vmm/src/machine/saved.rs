//! A machine as a point keeps it: the sections of its state file, out and in. What comes in was written by a stranger.

use arch::cpu_identity::CpuIdentity;
use arch::vcpu::VcpuState;
use arch::{GuestAddress, VcpuCount};
use devices::virtio::transport::MmioState;
use devices::virtio::{DeviceState, RestoreError};
use thiserror::Error;

use super::Machine;
use super::cpus::{CpuSaveError, CpuStates};
use super::devices::DevicesState;
use super::hotplug;
use super::stamps::DiskStamp;
use crate::config::{
    ConfigState, DiskBlocksState, HOTPLUG_ID, HotplugState, MacAddressError, NearnessState, SaveConfigError, VmConfig,
};
use crate::epoch::{Described, Digest, Encoded, Section, SectionError, SectionKind, Sections, StateHeader};
use crate::time::unix_ms;

/// The version of every section's type so far.
const V1: u16 = 1;

/// What keeps a machine from being saved.
#[derive(Debug, Error)]
pub enum MachineSaveError {
    /// It cannot be described to another process.
    #[error(transparent)]
    Config(#[from] SaveConfigError),
    /// Its vCPUs, or the VM.
    #[error(transparent)]
    Cpus(#[from] CpuSaveError),
    /// A part of it has no form in a file.
    #[error(transparent)]
    Section(#[from] SectionError),
}

/// What is wrong with a saved machine.
#[derive(Debug, Error)]
pub enum MachineStateError {
    /// A section that is missing, or is not what it says.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// An address in its configuration.
    #[error("the configuration in the snapshot is none")]
    Mac(#[from] MacAddressError),
    /// The memory that it has plugged.
    #[error("the memory device in the snapshot is none of this machine's")]
    Plugged(#[from] RestoreError),
    /// A disk that it does not have.
    #[error("the snapshot has the physical blocks of disk `{0}`, and no such disk")]
    NoSuchDisk(String),
    /// Devices near the nodes of another machine.
    #[error("the configuration in the snapshot has devices near nodes that the machine does not have")]
    Nearness,
    /// As many vCPUs as no machine has.
    #[error("the configuration in the snapshot has {0} vCPUs, which no machine has")]
    Vcpus(u64),
}

/// What a point keeps of a machine beside its memory and what its disks' hosts say.
#[derive(Debug)]
pub(crate) struct SavedMachine {
    described: Described,
    configured: ConfigState,
    /// The other ones.
    sections: Vec<Section>,
}

impl SavedMachine {
    /// What is for the header, and all sections.
    ///
    /// # Errors
    /// One has no form in a file.
    pub(crate) fn with_stamps(self, stamps: Vec<DiskStamp>) -> Result<(Described, Vec<Section>), SectionError> {
        let Self { described, configured, mut sections } = self;
        sections.insert(0, Section::of(SectionKind::Config, "", V1, &(configured, stamps))?);
        Ok((described, sections))
    }
}

/// A machine, all but its memory.
#[derive(Debug)]
pub(crate) struct MachineState {
    pub(super) cpus: CpuStates,
    pub(super) devices: DevicesState,
    /// When each disk's file was written last.
    pub(crate) stamps: Vec<DiskStamp>,
}

impl Machine {
    /// What a point keeps of the machine, which is paused and described by `config`.
    ///
    /// # Errors
    /// What of it cannot be saved; it is as it was.
    pub(crate) fn save(&self, config: &VmConfig) -> Result<SavedMachine, MachineSaveError> {
        let CpuStates { vcpus, vm } = self.save_cpus()?;
        let DevicesState { transports, serial, keyboard, rtc } = self.devices.save();
        let (configured, beside) = (ConfigState::save(config)?, configured_beside(config)?);
        let mut all = Encoded::of(V1, &configured).map_err(no_form)?.bytes().to_vec();
        for section in &beside {
            all.extend((section.kind as u16).to_le_bytes());
            all.extend(section.payload.bytes());
        }
        let digest = Digest::of(&all);
        let cpu = CpuIdentity::of(&vcpus.first().map(VcpuState::cpuid).unwrap_or_default());
        let described =
            Described { created_ms: unix_ms(), cpu: Encoded::of(V1, &cpu).map_err(no_form)?, config: digest };
        let mut sections = vec![
            Section::of(SectionKind::Vm, "", V1, &vm)?,
            Section::of(SectionKind::Serial, "", V1, &serial)?,
            Section::of(SectionKind::I8042, "", V1, &keyboard)?,
            Section::of(SectionKind::Rtc, "", V1, &rtc)?,
        ];
        sections.extend(beside);
        for (index, vcpu) in vcpus.iter().enumerate() {
            sections.push(Section::of(SectionKind::Vcpu, &index.to_string(), V1, vcpu)?);
        }
        for (id, transport) in &transports {
            sections.push(Section::of(SectionKind::Transport, id, V1, transport)?);
        }
        Ok(SavedMachine { described, configured, sections })
    }
}

/// What version 1 of the configuration has no place for, as far as a machine has it.
fn configured_beside(config: &VmConfig) -> Result<Vec<Section>, SectionError> {
    let hotplug = config.hotplug.as_ref().map(HotplugState::save);
    let hotplug = hotplug.map(|state| Section::of(SectionKind::Hotplug, "", V1, &state));
    let blocks = DiskBlocksState::save(config).map(|state| Section::of(SectionKind::DiskBlocks, "", V1, &state));
    let nearness = NearnessState::save(config).map(|state| Section::of(SectionKind::Nearness, "", V1, &state));
    [hotplug, blocks, nearness].into_iter().flatten().collect()
}

/// The CPU that the header of a point names.
///
/// # Errors
/// It is none.
pub(crate) fn cpu_of(header: &StateHeader) -> Result<CpuIdentity, SectionError> {
    header.cpu.decode(V1, &"of the CPU")
}

fn no_form(error: impl std::fmt::Display) -> SectionError {
    SectionError::Encode { section: "of the header".to_owned(), why: error.to_string() }
}

impl MachineState {
    /// Takes a machine out of `sections`, of which none may be left.
    ///
    /// # Errors
    /// [`MachineStateError`].
    pub(crate) fn take(mut sections: Sections) -> Result<(VmConfig, Self), MachineStateError> {
        let (config, stamps): (ConfigState, _) = sections.take(SectionKind::Config, "", V1)?;
        let mut config = config.restore()?;
        let hotplug: Option<HotplugState> = sections.take_if_any(SectionKind::Hotplug, "", V1)?;
        config.hotplug = hotplug.map(HotplugState::restore);
        let blocks: Option<DiskBlocksState> = sections.take_if_any(SectionKind::DiskBlocks, "", V1)?;
        blocks.map_or(Ok(()), |blocks| blocks.restore(&mut config)).map_err(MachineStateError::NoSuchDisk)?;
        let nearness: Option<NearnessState> = sections.take_if_any(SectionKind::Nearness, "", V1)?;
        if nearness.is_some_and(|nearness| !nearness.restore(&mut config)) {
            return Err(MachineStateError::Nearness);
        }
        let count = VcpuCount::new(config.cpus).map_err(|_| MachineStateError::Vcpus(config.cpus))?;
        let vm = sections.take(SectionKind::Vm, "", V1)?;
        let vcpus = count.indices().map(|index| sections.take(SectionKind::Vcpu, &index.to_string(), V1));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let serial = sections.take(SectionKind::Serial, "", V1)?;
        let keyboard = sections.take(SectionKind::I8042, "", V1)?;
        let rtc = sections.take(SectionKind::Rtc, "", V1)?;
        let ids: Vec<String> = sections.ids(SectionKind::Transport).map(str::to_owned).collect();
        let mut transports = Vec::with_capacity(ids.len());
        for id in ids {
            let transport: MmioState = sections.take(SectionKind::Transport, &id, V1)?;
            transports.push((id, transport));
        }
        sections.finish()?;
        let devices = DevicesState { transports, serial, keyboard, rtc };
        Ok((config, Self { cpus: CpuStates { vcpus, vm }, devices, stamps }))
    }

    /// What is plugged of the memory that can be in the machine of `config`, which has been validated.
    ///
    /// # Errors
    /// The memory device is of other memory.
    pub(crate) fn plugged(&self, config: &VmConfig) -> Result<Vec<(GuestAddress, u64)>, MachineStateError> {
        let device = self.devices.transports.iter().find(|(id, _)| id == HOTPLUG_ID);
        match (&config.hotplug, device.map(|(_, transport)| transport.device())) {
            (Some(hotplug), Some(DeviceState::Memory(state))) => {
                Ok(state.plugged(hotplug::area(hotplug, &config.memory, None))?)
            }
            // Who restores the devices says what does not go together.
            _ => Ok(Vec::new()),
        }
    }
}
