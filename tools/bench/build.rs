//! Links the floor of a boot as husk is linked (resources/link/README.md): what is compared differs in what it does alone.

fn main() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../../resources/link");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=husk-bench-floor=-static-pie");
    println!("cargo:rustc-link-arg-bin=husk-bench-floor=-L{scripts}");
    println!("cargo:rustc-link-arg-bin=husk-bench-floor=-Wl,-z,pack-relative-relocs");
}
