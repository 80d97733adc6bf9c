// Package nodetest has what tests need that run nodes.
package nodetest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

// Port picks a TCP port of 127.0.0.1 for a node that is to be started there again: it is below those that systems hand out by
// themselves, so that nobody is given it while nothing listens. Whoever looks for a port in this way, in this process or
// another, finds the UDP port of the same number taken until mark is closed.
func Port() (port int, mark io.Closer, err error) {
	for range 10000 {
		port = 10000 + rand.IntN(10000)
		udp, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			udp.Close()
			continue
		}
		l.Close()
		return port, udp, nil
	}
	return 0, nil, errors.New("nodetest: no free port from 10000 to 19999")
}
