// The greeting in Go with its standard library:  peer listen|accepted|inet
package main

import (
	"io"
	"net"
	"os"
	"time"
)

const deadline = 5 * time.Second

func serve(conn net.Conn, line string) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(deadline))
	if _, err := io.WriteString(conn, line); err != nil {
		return
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.Copy(io.Discard, conn)
}

func serveOne(fd uintptr, line string) {
	conn, err := net.FileConn(os.NewFile(fd, ""))
	if err != nil {
		panic(err)
	}
	serve(conn, line)
}

func main() {
	switch os.Args[1] {
	case "accepted":
		serveOne(3, "This socket was already accepted\n")
	case "inet":
		serveOne(0, "This socket was passed on stdin/stdout\n")
	default:
		listener, err := net.FileListener(os.NewFile(3, ""))
		if err != nil {
			panic(err)
		}
		for {
			conn, err := listener.Accept()
			if err != nil {
				panic(err)
			}
			go serve(conn, "This is a test\n")
		}
	}
}
