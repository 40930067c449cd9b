#![no_std]
#![no_main]
use guest::boot::Boot;
use guest::{acpi, apic, power, println, smp, time};
guest::pvh_note!("pvh_entry");
#[unsafe(no_mangle)]
fn guest_main(boot: &'static Boot) -> ! {
    println!("hello {}", boot.entry);
    let s = time::init();
    println!("tsc {} {}", time::tsc_hz(), s.name());
    let a = acpi::Acpi::find(boot);
    println!(
        "cpus {:?} s5 {:?}",
        a.as_ref().unwrap().apic_ids(),
        a.as_ref().unwrap().s5
    );
    apic::init_local();
    println!("n {}", smp::start(a.as_ref().unwrap().apic_ids()));
    power::off(a.as_ref())
}
