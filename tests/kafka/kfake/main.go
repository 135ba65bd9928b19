// A Kafka cluster in memory, franz-go's kfake, that answers chosen requests with an error code.
//
// It prints the addresses of its brokers, separated by commas, and then obeys lines on standard input:
//
//	fault KEY CODE COUNT TOPIC GROUP ID   the next COUNT requests of this kind fail with CODE; prints the fault's number
//	hits NUMBER                           prints how many requests the fault has answered
//
// A dash for TOPIC, GROUP or ID (the transactional one) means any. It ends with its input.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func main() {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.BrokerConfigs(map[string]string{
		"group.consumer.heartbeat.interval.ms": "200",
		"group.consumer.session.timeout.ms":    "2000",
	}))
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	fmt.Println(strings.Join(cluster.ListenAddrs(), ","))

	var faults []*kfake.FaultHandle
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		words := strings.Fields(input.Text())
		switch {
		case len(words) == 7 && words[0] == "fault":
			faults = append(faults, cluster.Fault(kfake.Fault{
				Keys:  []kmsg.Key{kmsg.Key(number(words[1]))},
				Err:   &kerr.Error{Message: "INJECTED", Code: int16(number(words[2]))},
				Count: number(words[3]),
				Topic: name(words[4]),
				Group: name(words[5]),
				TxnID: name(words[6]),
			}))
			fmt.Println(len(faults) - 1)
		case len(words) == 2 && words[0] == "hits":
			fmt.Println(faults[number(words[1])].Hits())
		default:
			log.Fatalf("unknown order %q", input.Text())
		}
	}
}

func number(word string) int {
	number, err := strconv.Atoi(word)
	if err != nil {
		log.Fatal(err)
	}
	return number
}

func name(word string) string {
	if word == "-" {
		return ""
	}
	return word
}
