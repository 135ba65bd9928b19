pub mod batch;
pub mod group;
