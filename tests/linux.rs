//! Linux on husk (see the tests to come).
