//! Consumer groups: list, describe, delete.

use std::collections::BTreeMap;

use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest,
};

use super::{Admin, each, group_id};
use crate::connection::Connection;
use crate::group::protocol::decode_assignment;
use crate::group::{GroupProtocol, TopicPartition, coordinator};
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

/// A group of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupListing {
    /// Its name.
    pub group_id: String,
    /// The kind of its members: `consumer`, `connect`, ...; empty without members.
    pub protocol_type: String,
    /// Its membership protocol: `classic`, `consumer`, `share` or `streams`; empty from brokers
    /// before Kafka 3.8.
    pub group_type: String,
    /// Its state, for example `Stable` or `Empty`; empty from brokers before Kafka 2.6.
    pub state: String,
}

/// A group and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its membership protocol.
    pub protocol: GroupProtocol,
    /// Its state, for example `Stable`, `Empty` or `Dead`. A group that does not exist is dead.
    pub state: String,
    /// The assignor in use.
    pub assignor: String,
    /// Its members.
    pub members: Vec<GroupMemberDescription>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMemberDescription {
    /// Its id in the group.
    pub member_id: String,
    /// The instance id of a static member.
    pub instance_id: Option<String>,
    /// The client id of its program.
    pub client_id: String,
    /// The host from which it is connected.
    pub host: String,
    /// The partitions assigned to it.
    pub partitions: Vec<TopicPartition>,
}

impl Admin {
    /// Lists the groups that each broker coordinates, by the broker's node id.
    ///
    /// # Errors
    /// When no broker answered in time. Each broker's result is an error of its own.
    #[doc(alias = "listGroups")]
    #[doc(alias = "listConsumerGroups")]
    pub fn list_groups(
        &self,
        deadline: Deadline,
    ) -> Result<BTreeMap<i32, Result<Vec<GroupListing>, Error>>, Error> {
        let brokers = self.describe_cluster(deadline)?.brokers;
        self.repeat_each(deadline, brokers.iter().map(|it| it.node), |left| {
            let listed = each(left.iter().copied(), deadline, |node, share| {
                self.list_groups_of(*node, share)
            });
            Ok(listed)
        })
    }

    fn list_groups_of(&self, node: i32, deadline: Deadline) -> Result<Vec<GroupListing>, Error> {
        let mut connection = self.cluster.connect(node, deadline)?;
        let response = connection.call(&ListGroupsRequest::default(), deadline)?;
        connection.check(ApiKey::ListGroups, response.error_code)?;
        let groups = response.groups.iter().map(|group| GroupListing {
            group_id: group.group_id.to_string(),
            protocol_type: group.protocol_type.to_string(),
            group_type: group.group_type.to_string(),
            state: group.group_state.to_string(),
        });
        Ok(groups.collect())
    }

    /// Describes groups of either protocol.
    ///
    /// # Errors
    /// When no broker answered in time. Each group's result is an error of its own.
    #[doc(alias = "describeConsumerGroups")]
    pub fn describe_groups<T: AsRef<str>>(
        &self,
        groups: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Result<GroupDescription, Error>>, Error> {
        self.repeat_groups(groups, deadline, |group, share| {
            let kind = coordinator::Kind::Group;
            let mut connection = coordinator::connect(&self.cluster, kind, group, share)?;
            match describe_consumer(&mut connection, group, share)? {
                Some(described) => Ok(described),
                None => describe_classic(&mut connection, group, share),
            }
        })
    }

    /// Deletes groups that have no members, with their committed offsets. A group that does not
    /// exist counts as deleted.
    ///
    /// # Errors
    /// When no broker answered in time. Each group's result is an error of its own.
    #[doc(alias = "deleteConsumerGroups")]
    pub fn delete_groups<T: AsRef<str>>(
        &self,
        groups: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Result<(), Error>>, Error> {
        self.repeat_groups(groups, deadline, |group, share| {
            let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id(group)]);
            let response = self.ask_coordinator(group, &request, share)?;
            let codes = response.results.iter().map(|it| it.error_code);
            let mut codes = codes.filter(|code| *code != ErrorCode::GroupIdNotFound.code());
            codes.try_for_each(|code| Error::check(ApiKey::DeleteGroups, code))
        })
    }
}

/// `None` when the group is none of the consumer protocol.
fn describe_consumer(
    connection: &mut Connection,
    group: &str,
    deadline: Deadline,
) -> Result<Option<GroupDescription>, Error> {
    if connection
        .version_of(ApiKey::ConsumerGroupDescribe)
        .is_err()
    {
        return Ok(None);
    }
    let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]);
    let response = connection.call(&request, deadline)?;
    let Some(found) = response.groups.first() else {
        return Ok(None);
    };
    match ErrorCode::from_code(found.error_code) {
        None => {}
        Some(ErrorCode::GroupIdNotFound | ErrorCode::UnsupportedVersion) => return Ok(None),
        Some(code) => return Err(Error::refused(ApiKey::ConsumerGroupDescribe, code)),
    }
    let members = found.members.iter().map(|member| {
        let topics = member.assignment.topic_partitions.iter();
        let partitions = topics.flat_map(|topic| {
            let name = &*topic.topic_name.0;
            topic
                .partitions
                .iter()
                .map(move |number| TopicPartition::new(name, *number))
        });
        GroupMemberDescription {
            member_id: member.member_id.to_string(),
            instance_id: member.instance_id.as_ref().map(ToString::to_string),
            client_id: member.client_id.to_string(),
            host: member.client_host.to_string(),
            partitions: partitions.collect(),
        }
    });
    Ok(Some(GroupDescription {
        protocol: GroupProtocol::Consumer,
        state: found.group_state.to_string(),
        assignor: found.assignor_name.to_string(),
        members: members.collect(),
    }))
}

fn describe_classic(
    connection: &mut Connection,
    group: &str,
    deadline: Deadline,
) -> Result<GroupDescription, Error> {
    let request = DescribeGroupsRequest::default().with_groups(vec![group_id(group)]);
    let response = connection.call(&request, deadline)?;
    let Some(found) = response.groups.first() else {
        let code = ErrorCode::GroupIdNotFound;
        return Err(Error::refused(ApiKey::DescribeGroups, code));
    };
    Error::check(ApiKey::DescribeGroups, found.error_code)?;
    let members = found.members.iter().map(|member| GroupMemberDescription {
        member_id: member.member_id.to_string(),
        instance_id: member.group_instance_id.as_ref().map(ToString::to_string),
        client_id: member.client_id.to_string(),
        host: member.client_host.to_string(),
        // Members of other kinds, such as Kafka Connect's, have no partitions.
        partitions: decode_assignment(member.member_assignment.clone()).unwrap_or_default(),
    });
    Ok(GroupDescription {
        protocol: GroupProtocol::Classic,
        state: found.group_state.to_string(),
        assignor: found.protocol_data.to_string(),
        members: members.collect(),
    })
}
