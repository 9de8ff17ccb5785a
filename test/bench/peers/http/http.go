// HTTP in Go with its standard library, on the passed socket. At SIGTERM it shuts down as documented.
package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	listener, err := net.FileListener(os.NewFile(3, ""))
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "Hello\n")
	})}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		<-asked
		server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		panic(err)
	}
	<-done
}
