//! Configurations of topics and brokers.

use std::collections::BTreeMap;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{DescribeConfigsRequest, IncrementalAlterConfigsRequest};

use super::Admin;
use crate::wire::{Request, text};
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

/// What a configuration belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigResource {
    /// A topic, by its name.
    Topic(String),
    /// A broker, by its node id.
    Broker(i32),
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigEntry {
    /// Its value; `None` for a secret, and for a setting without a value.
    pub value: Option<String>,
    /// Whether it is the default of the brokers or of Kafka.
    pub is_default: bool,
    /// Whether it cannot be changed.
    pub is_read_only: bool,
    /// Whether it is a secret.
    pub is_sensitive: bool,
}

/// The source of a topic's own setting, and of a broker's.
const OF_THE_RESOURCE: [i8; 2] = [1, 2];
/// Operations of IncrementalAlterConfigs.
const SET: i8 = 0;
const DELETE: i8 = 1;

impl ConfigResource {
    fn kind(&self) -> i8 {
        match self {
            Self::Topic(_) => 2,
            Self::Broker(_) => 4,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Topic(name) => name.clone(),
            Self::Broker(node) => node.to_string(),
        }
    }

    fn check(&self, api: ApiKey, code: i16) -> Result<(), Error> {
        match (self, ErrorCode::from_code(code)) {
            (_, None) => Ok(()),
            (Self::Topic(topic), Some(code)) => Err(Error::refused_topic(api, code, topic)),
            (Self::Broker(_), Some(code)) => Err(Error::refused(api, code)),
        }
    }
}

impl Admin {
    /// Returns all settings of a topic or broker, by name.
    ///
    /// # Errors
    /// When it does not exist, or no broker answered in time.
    #[doc(alias = "describeConfigs")]
    pub fn describe_configs(
        &self,
        resource: &ConfigResource,
        deadline: Deadline,
    ) -> Result<BTreeMap<String, ConfigEntry>, Error> {
        let wanted = DescribeConfigsResource::default()
            .with_resource_type(resource.kind())
            .with_resource_name(text(&resource.name()))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![wanted]);
        self.repeat(deadline, || {
            let response = self.ask_resource(resource, &request, deadline)?;
            let mut entries = BTreeMap::new();
            for result in &response.results {
                resource.check(ApiKey::DescribeConfigs, result.error_code)?;
                entries.extend(result.configs.iter().map(|config| {
                    let entry = ConfigEntry {
                        value: config.value.as_ref().map(ToString::to_string),
                        is_default: !OF_THE_RESOURCE.contains(&config.config_source),
                        is_read_only: config.read_only,
                        is_sensitive: config.is_sensitive,
                    };
                    (config.name.to_string(), entry)
                }));
            }
            Ok(entries)
        })
    }

    /// Changes settings of a topic or broker; `None` restores the default. Other settings stay.
    ///
    /// # Errors
    /// When it does not exist, a value is invalid, or no broker answered in time.
    #[doc(alias = "incrementalAlterConfigs")]
    pub fn alter_configs(
        &self,
        resource: &ConfigResource,
        changes: &BTreeMap<String, Option<String>>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let changes = changes.iter().map(|(name, value)| {
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(if value.is_some() { SET } else { DELETE })
                .with_value(value.as_deref().map(text))
        });
        let wanted = AlterConfigsResource::default()
            .with_resource_type(resource.kind())
            .with_resource_name(text(&resource.name()))
            .with_configs(changes.collect());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![wanted]);
        self.repeat(deadline, || {
            let response = self.ask_resource(resource, &request, deadline)?;
            let mut codes = response.responses.iter().map(|it| it.error_code);
            codes.try_for_each(|code| resource.check(ApiKey::IncrementalAlterConfigs, code))
        })
    }

    /// Only a broker itself knows its configuration.
    fn ask_resource<R: Request>(
        &self,
        resource: &ConfigResource,
        request: &R,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        match resource {
            ConfigResource::Topic(_) => self.ask_controller(request, deadline),
            ConfigResource::Broker(node) => {
                self.cluster.refresh(&[] as &[&str], deadline)?;
                self.cluster
                    .connect(*node, deadline)?
                    .call(request, deadline)
            }
        }
    }
}
