// On the port that is its argument. It prints its port.
import express from "express";

const app = express();
app.get("/", (_, response) => response.end("Hello\n"));
const server = app.listen(process.argv[2] ?? 0, () => console.log(server.address().port));
